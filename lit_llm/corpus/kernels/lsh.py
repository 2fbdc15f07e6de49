"""Which documents are copies of which, decided from digests and sketches alone.

Two documents are compared when their digests or all entries of a band of their sketches are equal:
    locality-sensitive
hashing, which two of Jaccard similarity s pass with probability 1 - (1 - s^rows)^bands. Such pairs
chain (A like B, B like C, A unlike C), so a document is dropped only for one that is itself kept:
in order of (rank, id), each is compared with those kept before, and is kept when none of them has
its digest or shares the asked part of its sketch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lit_llm.corpus.kernels.folding import mixed
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.minhash import NONE

# Kept documents that one is compared with in a bucket: 10^7 pages of a template would take hours
_PROBES = 1024
_LINK_BYTES = 32  # a document's key, row, and the sort's copy
NO_KEY = np.uint64(0)  # of a document without words: shares no band


@kernel
def band_keys(entries: np.ndarray) -> np.ndarray:
    """[n, rows] uint16 -> [n] uint64, equal where all entries are; NO_KEY for a document without
    words."""
    keys = np.empty(len(entries), np.uint64)
    for i in range(len(entries)):
        key = np.uint64(entries.shape[1])
        empty = True
        for entry in entries[i]:
            empty = empty and entry == NONE
            key = mixed(key ^ np.uint64(entry))
        keys[i] = NO_KEY if empty else key
    return keys


def components(columns: list[np.ndarray], memory_limit: int) -> np.ndarray:
    """[n] int64: the lowest row of each row's component, where rows are joined that share a key of
    some column.

    Args:
        columns: arrays [n] or [n, rows], in memory or mapped; keys are `keys_of` a part of them.
        memory_limit: bytes; a column is read again for each part of its keys that can be sorted
            within them.
    """
    n = len(columns[0])
    parent = np.arange(n)
    parts = max(1, -(-n * _LINK_BYTES // memory_limit))
    step = max(1, n // parts)
    for column in columns:
        for part in range(parts):
            found = [
                _part_keys(column, start, min(start + step, n), part, parts)
                for start in range(0, n, step)
            ]
            keys, rows = (
                (np.concatenate(pieces) for pieces in zip(*found, strict=True))
                if found
                else ((), ())
            )
            if len(keys):
                order = np.argsort(keys)
                _join(keys[order], rows[order], parent)
    _flatten(parent)
    return parent


def keys_of(part: np.ndarray) -> np.ndarray:
    """[n] uint64 keys of digests ([n, 2] uint64) or of a band's entries ([n, rows] uint16)."""
    return (
        np.ascontiguousarray(part[:, 0])
        if part.dtype == np.uint64
        else band_keys(np.ascontiguousarray(part))
    )


def _part_keys(
    column: np.ndarray, start: int, end: int, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    keys = keys_of(column[start:end])
    mine = np.flatnonzero((keys % np.uint64(parts) == part) & (keys != NO_KEY))
    return keys[mine], mine + start


@kernel
def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@kernel
def _join(keys: np.ndarray, rows: np.ndarray, parent: np.ndarray) -> None:
    """Join rows with equal keys, which stand side by side; a component's root is its lowest row."""
    for i in range(1, len(keys)):
        if keys[i] == keys[i - 1]:
            a, b = _root(parent, rows[i]), _root(parent, rows[i - 1])
            parent[max(a, b)] = min(a, b)


@kernel
def _flatten(parent: np.ndarray) -> None:
    for row in range(len(parent)):
        parent[row] = parent[parent[row]]  # lower rows are flat already


def component_chunks(parent: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Rows of the components with more than one, as many components at a time as have ``most``
    rows, or one larger."""
    sizes = np.bincount(parent, minlength=len(parent))
    rows = np.flatnonzero(sizes[parent] > 1)
    rows = rows[np.argsort(parent[rows], kind="stable")]
    roots = parent[rows]
    start = 0
    while start < len(rows):
        end = start + most
        if end < len(rows):
            first = int(np.searchsorted(roots, roots[end]))
            end = first if first > start else int(np.searchsorted(roots, roots[end], side="right"))
        yield rows[start:end]
        start = end


def kept_copies(
    digest: np.ndarray, bands: list[np.ndarray], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For documents in order of preference: the kept one that each is a copy of.

    Args:
        digest: [n, 2] uint64.
        bands: for each band [n, rows] uint16.
        threshold: least share of equal sketch entries, the estimate of Jaccard similarity.

    Returns:
        [n] int64, the kept document's position, -1 where the document is kept itself; and [n] bool,
        where the digest was equal. Of several similar ones the most similar is named, of those the
        first.
    """
    groups = np.empty((1 + len(bands), len(digest)), np.int64)
    for group, column in zip(groups, [digest, *bands], strict=True):
        keys = keys_of(column)
        group[:] = np.unique(keys, return_inverse=True)[1]
        if column is not digest:
            group[keys == NO_KEY] = -1
    sketch = np.concatenate(bands, axis=1) if bands else np.empty((len(digest), 0), np.uint16)
    return _kept_copies(
        groups, digest, sketch, int(np.ceil(threshold * sketch.shape[1] - 1e-9)), _PROBES
    )


@kernel
def _kept_copies(
    groups: np.ndarray, digest: np.ndarray, sketch: np.ndarray, needed: int, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    n, entries = sketch.shape
    copy_of = np.full(n, -1, np.int64)
    exact = np.zeros(n, np.bool_)
    last = np.full(groups.shape, -1, np.int64)  # of a bucket, the kept document that came last
    before = np.full(
        groups.shape, -1, np.int64
    )  # of a kept document, the one before it in its bucket
    compared = np.full(n, -1, np.int64)  # with which document last: once is enough
    for i in range(n):
        other = last[0, groups[0, i]]
        while other >= 0 and not exact[i]:
            if digest[other, 0] == digest[i, 0] and digest[other, 1] == digest[i, 1]:
                copy_of[i], exact[i] = other, True
            other = before[0, other]
        most = needed
        for b in range(1, len(groups)):
            if exact[i] or groups[b, i] < 0:
                break
            other = last[b, groups[b, i]]
            for _ in range(probes):
                if other < 0:
                    break
                if compared[other] != i:
                    compared[other] = i
                    same = 0
                    for e in range(entries):
                        same += sketch[i, e] == sketch[other, e]
                    if same > most or (same == most and (copy_of[i] < 0 or other < copy_of[i])):
                        copy_of[i], most = other, same
                other = before[b, other]
        if copy_of[i] < 0:
            for b in range(len(groups)):
                if groups[b, i] >= 0:
                    before[b, i] = last[b, groups[b, i]]
                    last[b, groups[b, i]] = i
    return copy_of, exact
