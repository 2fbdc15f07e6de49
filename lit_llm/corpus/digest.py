"""Digests by which exact copies are found: of a text's bytes, or of the text without case and breaks of lines."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa

from lit_llm.corpus.folding import SEPARATOR, FoldTable, decode, two_level
from lit_llm.corpus.kernels import njit
from lit_llm.corpus.minhash import buffers

BYTES = 16


def digests(text: pa.LargeStringArray, normalize: bool) -> np.ndarray:
    """[len(text), 2] uint64: the first 128 bits of each text's SHA-256.

    With ``normalize`` of the lowercased text, its runs of whitespace (and NULs) one space, none at its ends.
    """
    offsets, data = buffers(text)
    if normalize:
        offsets, data = _normalized(offsets, data, *_lower_table())
    view = memoryview(data)  # type: ignore[arg-type]
    parts = [hashlib.sha256(view[start:end]).digest()[:BYTES] for start, end in pairwise(offsets)]
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


@cache
def _lower_table() -> FoldTable:
    """Code point -> its lower case where that is one code point, SEPARATOR for whitespace."""
    every = np.arange(0x110000, dtype=np.uint32)
    for code in range(0x20000):  # no script above has cases
        char = chr(code)
        if char.isspace():
            every[code] = SEPARATOR
        elif len(char.lower()) == 1:
            every[code] = ord(char.lower())
    return two_level(every)


@njit
def _normalized(
    offsets: np.ndarray, data: np.ndarray, pages: np.ndarray, lowered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    texts = len(offsets) - 1
    # Lower case can take half as much again (U+023A: two bytes, its lower case three).
    out = np.empty((offsets[texts] - offsets[0]) * 3 // 2, np.uint8)
    starts = np.zeros(texts + 1, np.int64)
    to = 0
    for t in range(texts):
        at, end = offsets[t], offsets[t + 1]
        begin, space = to, False
        while at < end:
            code, behind = decode(data, at, end)
            letter = lowered[np.int64(pages[code >> 8]) * 256 + np.int64(code & 255)]
            if letter == SEPARATOR:
                space = to > begin  # none at the start
                at = behind
                continue
            if space:
                out[to] = 32
                to, space = to + 1, False
            if letter < 0x80:
                out[to] = letter
                to += 1
            elif behind == at + 1:  # a byte that is no character
                out[to] = data[at]
                to += 1
            else:
                length = 2 if letter < 0x800 else 3 if letter < 0x10000 else 4
                for i in range(length - 1, 0, -1):
                    out[to + i] = 0x80 | (letter & 0x3F)
                    letter >>= 6
                out[to] = (0xF00 >> length) & 0xFF | letter
                to += length
            at = behind
        starts[t + 1] = to
    return starts, out
