"""Only `functional`."""
