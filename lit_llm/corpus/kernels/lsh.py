"""Locality-sensitive hashing: find the copies among documents from digests and sketches alone.

Two documents are compared if their digests are equal, or if all entries of one band of their
sketches are equal. Documents of Jaccard similarity s are compared with probability
1 - (1 - s^rows)^bands.

Such pairs form chains (A is similar to B, B to C, but A is not similar to C). Therefore a document
is dropped only if it is a copy of a document that is itself kept. Documents are visited in order of
(rank, id). Each is compared with the documents kept so far. It is kept if none of them has the same
digest or shares the required part of its sketch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lit_llm.corpus.kernels.folding import mixed
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.minhash import NONE

# Most kept documents of one bucket that a document is compared with. Without a limit, 10^7 pages
# made from one template would take hours.
_PROBES = 1024
_LINK_BYTES = 32  # memory of a document's key, its row, and the copies made by the sort
NO_KEY = np.uint64(0)  # key of a document without words: it shares no band with any other


@kernel
def band_keys(entries: np.ndarray) -> np.ndarray:
    """[n, rows] uint16 -> [n] uint64 hashes of a band's entries; NO_KEY for one without words."""
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
    """[n] int64: the lowest row of each row's connected component (union-find).

    Two rows are connected if they have an equal key in some column.

    Args:
        columns: arrays [n] or [n, rows], in memory or mapped; `keys_of` makes keys of their slices.
        memory_limit: in bytes. If the keys of a column do not fit, they are split by their value
            into parts that can be sorted within the limit. The column is read once per part.
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
    """(keys, rows) of those documents of ``column[start:end]`` with key modulo parts == part."""
    keys = keys_of(column[start:end])
    mine = np.flatnonzero((keys % np.uint64(parts) == part) & (keys != NO_KEY))
    return keys[mine], mine + start


@kernel
def _root(parent: np.ndarray, row: int) -> int:
    """The root of a row's component."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]  # path halving keeps the chains short
        row = parent[row]
    return row


@kernel
def _join(keys: np.ndarray, rows: np.ndarray, parent: np.ndarray) -> None:
    """Join rows with equal keys; ``keys`` is sorted. The root of a component is its lowest row."""
    for i in range(1, len(keys)):
        if keys[i] == keys[i - 1]:
            a, b = _root(parent, rows[i]), _root(parent, rows[i - 1])
            parent[max(a, b)] = min(a, b)


@kernel
def _flatten(parent: np.ndarray) -> None:
    """Let every row point to its root."""
    for row in range(len(parent)):
        # A parent is a lower row, which already points to its root.
        parent[row] = parent[parent[row]]


def component_chunks(parent: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield the rows of components that have more than one row, in chunks of whole components.

    A chunk has at most ``most`` rows, unless it is a single component that is larger.
    """
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
    """For each document, the kept document that it is a copy of.

    The documents are in order of preference.

    Args:
        digest: [n, 2] uint64.
        bands: one array per band, [n, rows] uint16.
        threshold: minimum share of equal sketch entries, which estimates the Jaccard similarity.

    Returns:
        [n] int64, the position of the kept document, -1 if the document itself is kept; and [n]
        bool, whether their digests are equal. Among several similar documents the most similar one
        is named; among equally similar ones, the first.
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
    """The loop of `kept_copies`, quadratic in a bucket up to ``probes``.

    ``groups[0]`` numbers the digests' buckets, the other rows those of the bands (-1: none). Every
    bucket is a linked list of its kept documents, the newest first.
    """
    n, entries = sketch.shape
    copy_of = np.full(n, -1, np.int64)
    exact = np.zeros(n, np.bool_)
    last = np.full(groups.shape, -1, np.int64)  # per bucket: the newest kept document
    before = np.full(groups.shape, -1, np.int64)  # per kept document: the previous in its bucket
    # The document that each kept document was last compared with: once is enough, even if the two
    # share several bands.
    compared = np.full(n, -1, np.int64)
    for i in range(n):
        # An equal digest ends the search. Digests of one bucket may differ, because the bucket's
        # key is only the first half of the digest.
        other = last[0, groups[0, i]]
        while other >= 0 and not exact[i]:
            if digest[other, 0] == digest[i, 0] and digest[other, 1] == digest[i, 1]:
                copy_of[i], exact[i] = other, True
            other = before[0, other]
        # Otherwise count the equal sketch entries for the documents that share a band.
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
