"""How many items a comparison needs."""

from __future__ import annotations

import math

from lit_llm.evaluate.statistics.distributions import t_quantile
from lit_llm.evaluate.statistics.paired import Test
from lit_llm.evaluate.statistics.student import LEVEL, POWER


def items_needed(test: Test, items: int, margin: float) -> float:
    """Items with which a comparison decides about ``margin`` with a power of 80%.

    With so many items of the same kind, in clusters of the same size, a difference of ``margin``
    is found, and if there is none, "the same within the margin" is found (two one-sided tests at
    5%). Both hold with a probability of 80% at least.

    Args:
        test: the comparison.
        items: its number of items.
        margin: above 0.

    Returns:
        The number, rounded up. Infinite if the spread of the items is not known.
    """
    if not math.isfinite(test.standard_error):
        return math.inf
    spread = test.standard_error**2 * items  # of one item
    share = (test.df + 1) / items  # clusters for each item
    needed = float(items)
    for _ in range(5):  # the quantiles depend on the number, but hardly
        df = max(1, round(needed * share) - 1)
        found = t_quantile((1 + LEVEL) / 2, df) + t_quantile(POWER, df)
        same = t_quantile(LEVEL, df) + t_quantile((1 + POWER) / 2, df)
        needed = max(found, same) ** 2 * spread / margin**2
    return math.ceil(needed)
