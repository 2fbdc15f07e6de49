"""Limits of kernels that settings are held to. Imports nothing, so that settings are read
quickly."""

LONGEST_NGRAM = 63
"""Words; `minhash` and `overlap` keep a ring of one hash more."""
