"""Only `boxes`."""
