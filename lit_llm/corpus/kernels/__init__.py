"""Functions compiled by numba: code points, quality rules, hashes, near-duplicate detection.

The cache of compiled kernels is keyed by a digest of all files in this folder. Therefore a kernel
must not import anything from `corpus/` outside this folder.
"""
