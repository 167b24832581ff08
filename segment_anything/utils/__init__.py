"""The helpers that programs for the original package import by name; closed to new ones."""
