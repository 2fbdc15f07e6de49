"""The change of a mean score between two models that were asked the same items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lit_llm.evaluate.statistics.paired import paired_difference


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
    """The change of the mean, with the interval of `paired_difference`.

    Args:
        before: item -> score; at least one item.
        after: the same items.
    """
    assert before and before.keys() == after.keys()
    old, new = (np.array([scores[item] for item in before], float) for scores in (before, after))
    test = paired_difference(old, new)
    return Change(len(old), float(old.mean()), float(new.mean()), test.difference, *test.interval())
