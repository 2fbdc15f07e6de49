"""Everything that numba compiles: text as code points, the papers' rules, hashes, near duplicates.

Compiled kernels are cached under a digest of all files in this folder. So a kernel imports nothing
of `corpus/` from outside this folder.
"""
