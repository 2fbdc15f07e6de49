"""Digests that identify exact copies, with or without regard to case and spacing."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

from lit_llm.corpus.kernels.folding import POINTS
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.utf8 import buffers, decode, encode, longest

BYTES = 16


def digests(text: pa.LargeStringArray, normalize: bool) -> np.ndarray:
    """[len(text), 2] uint64: the first 128 bits of each text's SHA-256.

    With ``normalize``, the text is lowercased first, runs of whitespace (and NULs) become one space
    and whitespace at both ends is removed.
    """
    data, offsets = buffers(text)
    if normalize:
        data, offsets = _normalized(data, offsets, _lower_table())
    view = memoryview(data)  # type: ignore[arg-type]
    parts = [hashlib.sha256(view[start:end]).digest()[:BYTES] for start, end in pairwise(offsets)]
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


@cache
def _lower_table() -> np.ndarray:
    """[POINTS] int32: a code point's lower case if that is one code point, 0 for whitespace."""
    table = np.arange(POINTS, dtype=np.int32)
    for code in range(0x20000):  # no script above has upper and lower case
        char = chr(code)
        if char.isspace():
            table[code] = 0
        elif len(char.lower()) == 1:
            table[code] = ord(char.lower())
    return table


@kernel
def _normalized(
    data: np.ndarray, offsets: np.ndarray, lowered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(data, offsets) of the texts in lower case and with single spaces.

    Each text is rewritten in place in ``points``. That is safe because the normalized text never
    has more code points than were read so far. A space is written only before the next character
    that is kept, so none remains at the end.
    """
    texts = len(offsets) - 1
    points = np.empty(longest(offsets), np.int32)
    # Lower case can need 1.5 times as many bytes (U+023A takes two bytes, its lower case three).
    out = np.empty((offsets[texts] - offsets[0]) * 3 // 2, np.uint8)
    ends = np.zeros(texts + 1, np.int64)
    for t in range(texts):
        kept, space = 0, False
        for i in range(decode(data, offsets[t], offsets[t + 1], points)):
            point = lowered[points[i]]
            if point == 0:
                space = kept > 0
                continue
            if space:
                points[kept] = 32
                kept, space = kept + 1, False
            points[kept] = point
            kept += 1
        ends[t + 1] = encode(points, 0, kept, out, ends[t])
    return out, ends
