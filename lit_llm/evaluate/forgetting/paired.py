"""The change of a mean score between two models that were asked the same items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_Z = 1.96  # standard normal quantile of a two-sided interval of 95%


@dataclass(frozen=True)
class Change:
    """A score of the same items before and after.

    Attributes:
        n: number of items.
        before: mean score before.
        after: mean score after.
        change: ``after - before``.
        low: lower end of the 95% interval of ``change``.
        high: upper end.
    """

    n: int
    before: float
    after: float
    change: float
    low: float
    high: float


def paired_change(before: Mapping[str, float], after: Mapping[str, float]) -> Change:
    """The change of the mean, with the normal interval of the paired differences.

    The interval is mean +- 1.96 standard errors of the differences of single items (Miller 2024,
    arXiv:2411.00640, section 4.2). Differences of items are smaller than those of unpaired
    samples, because most items are easy or hard for both. For scores from 0 to 1, half an item
    that was won, half an item that was lost, and one that stayed are added first, as Agresti and
    Min do for two matched proportions (Statistics in Medicine 24:729, 2005). Without them the
    interval of few items of which none changed would have no width.

    Args:
        before: item -> score; at least one item.
        after: the same items.
    """
    assert before and before.keys() == after.keys()
    old, new = (np.array([scores[item] for item in before], float) for scores in (before, after))
    difference, weight = new - old, np.ones(len(old))
    if min(old.min(), new.min()) >= 0 and max(old.max(), new.max()) <= 1:
        difference = np.append(difference, [1.0, -1.0, 0.0])
        weight = np.append(weight, [0.5, 0.5, 1.0])
    total = weight.sum()
    mean = (weight * difference).sum() / total
    variance = (weight * (difference - mean) ** 2).sum() / total
    half = _Z * float(np.sqrt(variance / total))
    return Change(
        len(old),
        float(old.mean()),
        float(new.mean()),
        float((new - old).mean()),
        float(mean - half),
        float(mean + half),
    )
