"""Kernels of decontamination: hash n-grams of benchmarks and find documents that contain one."""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.folding import mixed
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.minhash import PRIME, RING, next_prefix
from lit_llm.corpus.kernels.utf8 import decode, longest


@kernel
def ngram_hashes(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, ngram: int, shortest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths in words (int64) and hashes (uint64) of the n-grams of all texts.

    A text shorter than ``ngram`` words gives one n-gram, the whole text. A text of fewer than
    ``shortest`` words gives none.
    """
    # Upper limit of the number of words: a word takes at least a byte and a separator, or three
    # bytes.
    most = (offsets[-1] - offsets[0]) // 2 + len(offsets)
    lengths, hashes = np.empty(most, np.int64), np.empty(most, np.uint64)
    ring = np.zeros(RING, np.uint64)
    points = np.empty(longest(offsets), np.int32)
    power = np.uint64(1)
    for _ in range(ngram):
        power *= PRIME
    count = 0
    for t in range(len(offsets) - 1):
        words, at, end = 0, 0, decode(data, offsets[t], offsets[t + 1], points)
        ring[0] = 0
        while True:
            at = next_prefix(points, at, end, table, ring, words)
            if at < 0:
                break
            words += 1
            if words >= ngram:
                lengths[count] = ngram
                hashes[count] = mixed(ring[words % RING] - ring[(words - ngram) % RING] * power)
                count += 1
        if shortest <= words < ngram:
            lengths[count], hashes[count] = words, mixed(ring[words % RING])
            count += 1
    return lengths[:count], hashes[:count]


@kernel
def document_hits(
    data: np.ndarray,
    offsets: np.ndarray,
    table: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    hashes: np.ndarray,
    owners: np.ndarray,
) -> np.ndarray:
    """[texts] int64: the owner of the first listed n-gram that occurs in each text, -1 if none.

    Args:
        data, offsets, table: the texts and `fold_table`.
        lengths: [k], ascending: the lengths in words of the listed n-grams. The n-grams of
            ``lengths[i]`` words are ``hashes[starts[i]:starts[i + 1]]``, in ascending order.
        starts: [k + 1].
        hashes, owners: the hash and the owner of each listed n-gram.
    """
    hits = np.full(len(offsets) - 1, -1, np.int64)
    ring = np.zeros(RING, np.uint64)
    points = np.empty(longest(offsets), np.int32)
    powers = np.ones(len(lengths), np.uint64)
    for i in range(len(lengths)):
        for _ in range(lengths[i]):
            powers[i] *= PRIME
    # A one-hash Bloom filter: one bit for each value of the low 20 bits of the hash. Most n-grams
    # are not listed, and the filter rejects them without a binary search.
    maybe = np.zeros(1 << 17, np.uint8)
    for value in hashes:
        maybe[(value & np.uint64(0xFFFFF)) >> np.uint64(3)] |= np.uint8(1) << (value & np.uint64(7))
    for t in range(len(hits)):
        words, at, end = 0, 0, decode(data, offsets[t], offsets[t + 1], points)
        ring[0] = 0
        while hits[t] < 0:
            at = next_prefix(points, at, end, table, ring, words)
            if at < 0:
                break
            words += 1
            # Check the n-grams of every listed length that end with this word.
            for i in range(len(lengths)):
                if words < lengths[i]:
                    break
                value = mixed(ring[words % RING] - ring[(words - lengths[i]) % RING] * powers[i])
                if (
                    maybe[(value & np.uint64(0xFFFFF)) >> np.uint64(3)] >> (value & np.uint64(7))
                ) & np.uint8(1):
                    found = starts[i] + np.searchsorted(hashes[starts[i] : starts[i + 1]], value)
                    if found < starts[i + 1] and hashes[found] == value:
                        hits[t] = owners[found]
                        break
    return hits
