"""Exact duplicates, near duplicates and documents that contain evaluation texts."""
