"""Continuous batching: many requests generate together, and each gets the answer it gets alone."""
