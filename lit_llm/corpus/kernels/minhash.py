"""MinHash sketches: documents that share word n-grams share entries, in the proportion of their
Jaccard similarity.

An entry of a sketch is the least value that a hash function of its own takes over the document's
n-grams (Broder 1997). Of it 16 bits are kept (b-bit minwise hashing, arXiv:0908.4052): two
documents' entries are equal with probability
 J + (1 - J) / 65536.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lit_llm.corpus.kernels.folding import fold_table, mixed, next_word
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.limits import LONGEST_NGRAM
from lit_llm.corpus.kernels.utf8 import buffers, decode, longest

NONE = np.uint16(0xFFFF)  # fills the sketch of a document without words
PRIME = np.uint64(
    0x9E3779B97F4A7C55
)  # any odd number with mixed bits: word hashes are combined as a polynomial in it
_BLOCK = 1024  # n-grams hashed at a time: they and the sketch stay in the first-level cache
RING = LONGEST_NGRAM + 1


def sketches(text: pa.LargeStringArray, ngram: int, entries: int, seed: int = 0) -> np.ndarray:
    """[len(text), entries] uint16 sketches of the texts' word n-grams.

    A text of fewer than ``ngram`` words counts as one n-gram, a text without words gives a row of
    0xFFFF. Equal for equal words, on every machine. Runs without the GIL.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    factors = draw.integers(0, 1 << 31, entries, np.uint32) * np.uint32(2) + np.uint32(1)
    data, offsets = buffers(text)
    return _sketches(
        data, offsets, fold_table(), ngram, factors, draw.integers(0, 1 << 32, entries, np.uint32)
    )


@kernel
def next_prefix(
    points: np.ndarray, at: int, end: int, table: np.ndarray, ring: np.ndarray, words: int
) -> int:
    """Position behind the next word of ``points[at:end]``, see `next_word`; -1 where there is none.

    Args:
        ring: [RING] uint64, [i % RING] being the hash of the first i words, 0 of none. The next
            word's is put in. An n-gram, the words i + 1 to j, has the hash ring[j % RING] - ring[i
            % RING] * PRIME ** (j - i).
        words: how many came before.
    """
    word, at = next_word(points, at, end, table)
    if at >= 0:
        ring[(words + 1) % RING] = ring[words % RING] * PRIME + word
    return at


@kernel
def _sketches(
    data: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    ngram: int,
    factors: np.ndarray,
    addends: np.ndarray,
) -> np.ndarray:
    texts = len(offsets) - 1
    entries = len(factors)
    out = np.empty((texts, entries), np.uint16)
    least = np.empty(entries, np.uint32)
    block = np.empty(_BLOCK, np.uint32)
    ring = np.empty(RING, np.uint64)
    points = np.empty(longest(offsets), np.int32)
    power = np.uint64(1)
    for _ in range(ngram):
        power *= PRIME
    for t in range(texts):
        least[:] = np.uint32(0xFFFFFFFF)
        filled = words = 0
        ring[0] = 0
        at, end = 0, decode(data, offsets[t], offsets[t + 1], points)
        while at >= 0:
            at = next_prefix(points, at, end, table, ring, words)
            if at >= 0:
                words += 1
            if words >= ngram and at >= 0:
                block[filled] = mixed(
                    ring[words % RING] - ring[(words - ngram) % RING] * power
                ) >> np.uint64(32)
                filled += 1
            elif at < 0 and 0 < words < ngram:
                block[filled] = mixed(ring[words % RING]) >> np.uint64(32)
                filled += 1
            if filled == _BLOCK or (at < 0 and filled):
                _take_least(block, filled, factors, addends, least)
                filled = 0
        if words == 0:
            out[t] = NONE
        else:
            for e in range(entries):
                # Mixed, because the least of many is small: its high bits say little.
                out[t, e] = mixed(np.uint64(least[e])) & np.uint64(0xFFFF)
    return out


@kernel
def _take_least(
    block: np.ndarray, filled: int, factors: np.ndarray, addends: np.ndarray, least: np.ndarray
) -> None:
    """Lower ``least`` to what each hash function, x -> factor * x + addend mod 2^32, takes over
    ``block[:filled]``.

    An entry's loop over the n-grams, counted and with this minimum, becomes vector instructions:
    3.9 ns an n-gram for 112 entries; over a slice with ``min`` 40 ns, with the loops the other way
    round 7.2 (AVX-512).
    """
    for e in range(len(least)):
        factor, addend, low = factors[e], addends[e], least[e]
        for i in range(filled):
            value = np.uint32(np.uint32(factor * block[i]) + addend)
            low = value if value < low else low
        least[e] = low
