"""Readers of file formats, one module per format.

A reader yields the documents of a part, and raises an error if the file as a whole is wrong.
"""
