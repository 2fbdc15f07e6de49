"""Rows of conversations: their files, shapes, policies, splits and mixture."""
