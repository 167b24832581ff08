"""`layers` and `registry`."""
