"""Texts of which it is known what a corpus build must find in them: for benchmarks and tests."""
