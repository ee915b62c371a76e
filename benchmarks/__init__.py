"""Measurements of this package, each a command of its own."""
