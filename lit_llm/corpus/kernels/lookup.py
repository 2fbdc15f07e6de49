"""Look up strings in a sorted array by bisection: no batch has to build a hash table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.utf8 import buffers


def positions(wanted: pa.LargeStringArray, ordered: pa.LargeStringArray) -> pa.Int64Array:
    """Index of each string of ``wanted`` in ``ordered``, null if it is not there.

    ``ordered`` is ascending by bytes, as Arrow sorts.
    """
    found = _positions(*buffers(wanted), *buffers(ordered))
    return pa.array(found, mask=found < 0)


@kernel
def _positions(
    data: np.ndarray, offsets: np.ndarray, ordered: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Bisect ``ordered`` for each string of ``data``: its index, -1 if it is not there."""
    found = np.full(len(offsets) - 1, -1, np.int64)
    for i in range(len(found)):
        size = offsets[i + 1] - offsets[i]
        low, high = 0, len(ends) - 1
        while low < high and found[i] < 0:
            middle = (low + high) // 2
            other = ends[middle + 1] - ends[middle]
            # If one string is a prefix of the other, their lengths decide.
            less = size < other
            equal = size == other
            for k in range(min(size, other)):
                a, b = data[offsets[i] + k], ordered[ends[middle] + k]
                if a != b:
                    less, equal = a < b, False
                    break
            if equal:
                found[i] = middle
            elif less:
                high = middle
            else:
                low = middle + 1
    return found
