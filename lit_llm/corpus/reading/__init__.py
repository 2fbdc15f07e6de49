"""Input files to documents: find files, cut them into parts, parse them, extract pages' text."""
