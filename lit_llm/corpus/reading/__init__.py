"""Input files to documents: find them, cut them into parts, parse them, extract the text of
pages."""
