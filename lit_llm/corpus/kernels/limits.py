"""Limits of the kernels that the settings check. Imports nothing, so that settings load quickly."""

LONGEST_NGRAM = 63
"""Longest n-gram, in words. `minhash` and `overlap` keep a ring of one hash more."""
