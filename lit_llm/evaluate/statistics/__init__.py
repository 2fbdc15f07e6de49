"""Differences between models on the same items: tests, intervals, power."""
