"""Which examples are held out for validation: whole groups, whole clusters of near-duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lit_llm.corpus.block import texts
from lit_llm.corpus.kernels.minhash import NONE, sketches
from lit_llm.corpus.kernels.near_pairs import join, root

THRESHOLD = 0.6
"""Estimated Jaccard similarity of word 5-grams from which two prompts are near-duplicates; the
default of `Dedup`, whose bands are used too."""
_NGRAM, _BANDS, _ROWS = 5, 28, 4


def clusters(prompts: Sequence[str]) -> np.ndarray:
    """For each text, the index of the first text of its cluster, int64 (texts,).

    Two texts are in one cluster if a chain of near-duplicates connects them. Equal texts are always
    in one. `near_duplicates` would not do: it drops a text for its likeness to a kept one, and two
    kept texts may both be alike to a dropped one.
    """
    unique, inverse = np.unique(np.array(prompts, dtype=object), return_inverse=True)
    if not len(unique):
        return np.zeros(0, np.int64)
    sketch = sketches(texts(unique.tolist()), _NGRAM, _BANDS * _ROWS)
    parent = np.arange(len(unique))
    least = round(THRESHOLD * _BANDS * _ROWS)
    with_words = (sketch != NONE).any(1)
    for band in range(_BANDS):
        rows = np.flatnonzero(with_words)
        keys = np.ascontiguousarray(sketch[rows, band * _ROWS : (band + 1) * _ROWS])
        packed = keys.view(np.uint64).ravel()
        order = np.argsort(packed, kind="stable")
        join(sketch, rows[order], packed[order], least, parent)
    roots = np.array([root(parent, i) for i in range(len(unique))])
    of_text = roots[inverse]
    first: dict[int, int] = {}
    return np.array([first.setdefault(int(root), at) for at, root in enumerate(of_text)])


def held_out(
    groups: Sequence[str | None],
    prompts: Sequence[str],
    positions: Sequence[float],
    fraction: float,
) -> np.ndarray:
    """For each example, whether it is held out, bool (examples,).

    A unit is never parted: all examples of a ``group``, and all examples without one whose prompts
    are near-duplicates. It is held out if its position is below ``fraction``. A unit with a larger
    share of the examples than ``fraction`` stays in training, so that a set of prompts that are all
    alike does not become validation as a whole. If no unit is held out, the smallest with the
    lowest position is.

    Args:
        groups: group of each example, or None.
        prompts: text of each example's prompt.
        positions: number in [0, 1) of each example, a hash of its first question.
        fraction: share for validation.

    Returns:
        The mask. It depends on the examples, not on their order.
    """
    alone = [at for at, group in enumerate(groups) if group is None]
    first = clusters([prompts[at] for at in alone])
    units = [f"group {group}" for group in groups]
    for at, leader in zip(alone, first, strict=True):
        units[at] = f"cluster {leader}"
    size = Counter(units)
    # The member whose prompt comes first in alphabetical order stands for its unit: the lowest of
    # many positions would hold out large units more often than small ones.
    leaders: dict[str, tuple[str, float]] = {}
    for unit, prompt, position in zip(units, prompts, positions, strict=True):
        leaders[unit] = min(leaders.get(unit, (prompt, position)), (prompt, position))
    place = {unit: position for unit, (_, position) in leaders.items()}
    most = max(1.0, fraction * len(units))
    chosen = {unit for unit, at in place.items() if at < fraction and size[unit] <= most}
    if not chosen and size:
        # A group may have the prompt of a cluster, so its name decides; no two clusters have one.
        name = {unit: unit if unit.startswith("group ") else "" for unit in units}
        chosen = {min(size, key=lambda u: (size[u] > most, place[u], leaders[u][0], name[u]))}
    return np.array([unit in chosen for unit in units], dtype=bool)
