"""Kernel that joins near-duplicate texts to clusters, by their MinHash sketches."""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.jit import kernel


@kernel
def root(parent: np.ndarray, at: int) -> int:
    """The first member of the cluster of ``at``; ``parent`` is a forest of lower indices."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@kernel
def join(
    sketch: np.ndarray, rows: np.ndarray, keys: np.ndarray, least: int, parent: np.ndarray
) -> None:
    """Join the clusters of texts that share a band and enough of their sketches.

    Args:
        sketch: [texts, entries] uint16.
        rows: texts in the order of their ``keys``.
        keys: [rows] uint64, ascending: the texts' entries of one band.
        least: least number of equal entries of near-duplicates.
        parent: [texts] int64, the forest of `root`; changed in place.
    """
    begin = 0
    while begin < len(keys):
        end = begin + 1
        while end < len(keys) and keys[end] == keys[begin]:
            end += 1
        for i in range(begin, end):
            apart = False  # whether a later text is in another cluster than this one
            for j in range(i + 1, end):
                a, b = root(parent, rows[i]), root(parent, rows[j])
                if a == b:
                    continue
                same = 0
                for e in range(sketch.shape[1]):
                    same += sketch[rows[i], e] == sketch[rows[j], e]
                if same >= least:
                    parent[max(a, b)] = min(a, b)
                else:
                    apart = True
            if not apart:  # all pairs of the rest are in one cluster already
                break
        begin = end
