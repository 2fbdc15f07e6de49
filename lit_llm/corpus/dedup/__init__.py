"""Removal of exact duplicates, near duplicates and documents that contain evaluation texts."""
