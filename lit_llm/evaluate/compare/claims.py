"""Claims: of which of two contenders a task shows that it is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lit_llm.evaluate.compare.contenders import Contender
from lit_llm.evaluate.compare.joined import Joined
from lit_llm.evaluate.statistics.corrections import CORRECTIONS
from lit_llm.evaluate.statistics.items_needed import items_needed
from lit_llm.evaluate.statistics.paired import Test, paired_difference
from lit_llm.evaluate.statistics.seeds import difference_of_recipes
from lit_llm.evaluate.statistics.student import LEVEL, StudentT

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "the same", "cannot tell"
MEAN = "mean of the tasks"


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        task: its name, or `MEAN`.
        metric: its name.
        reference: name of the first contender.
        other: name of the second.
        before: value of the first.
        after: value of the second.
        test: of ``after - before``; of the logarithms, for perplexities.
        items: their number.
        clusters: their number.
        higher_is_better: direction of the metric.
        relative: whether the difference is shown in percent, since it is one of logarithms.
        margin: differences below it do not matter, in the unit of the difference.
        p: adjusted for all claims of the table.
        p_same: of a difference beyond the margin (two one-sided tests), adjusted alike.
    """

    task: str
    metric: str
    reference: str
    other: str
    before: float
    after: float
    test: Test
    items: int
    clusters: int
    higher_is_better: bool
    relative: bool
    margin: float
    p: float = math.nan
    p_same: float = math.nan

    @property
    def verdict(self) -> str:
        """One of four: `BETTER`, `WORSE`, `SAME` (within the margin), `UNKNOWN`."""
        if self.p <= 1 - LEVEL:
            return BETTER if (self.test.difference > 0) == self.higher_is_better else WORSE
        return SAME if self.p_same <= 1 - LEVEL else UNKNOWN

    @property
    def difference(self) -> float:
        """``after - before``, or the relative one."""
        return self.shown(self.test.difference)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference, not adjusted for other claims."""
        low, high = self.test.interval()
        return self.shown(low), self.shown(high)

    @property
    def smallest(self) -> float:
        """The difference that these items find with a probability of 80%."""
        return self.shown(self.test.smallest())

    @property
    def items_for_margin(self) -> float:
        """Items with which the margin would be decided; see `items_needed`."""
        return items_needed(self.test, self.items, self._shift(self.margin))

    def not_worse_by(self, margin: float) -> bool:
        """Whether the other is shown not to be worse by ``margin`` (one-sided test at 5%)."""
        if self.higher_is_better:
            return self.test.above(self._shift(-margin)) <= 1 - LEVEL
        return self.test.below(self._shift(margin)) <= 1 - LEVEL

    def raw_p_same(self) -> float:
        """p-value of a difference of at least the margin, not adjusted."""
        low, high = self._shift(-self.margin), self._shift(self.margin)
        return max(self.test.above(low), self.test.below(high))

    def shown(self, value: float) -> float:
        """A difference as tables show it."""
        return math.expm1(min(value, 700.0)) if self.relative else value

    def _shift(self, margin: float) -> float:
        return math.log1p(margin) if self.relative else margin


def claim(
    first: Contender, second: Contender, task: str, metric: str, joined: Joined, margin: float
) -> Claim:
    """Judge one metric of one task."""
    entry = first.tasks[task]["metrics"][metric]
    several = len(joined.before) > 1 or len(joined.after) > 1
    judge = difference_of_recipes if several else _of_single_runs
    total = len(joined.ids) if joined.weights is None else joined.weights.sum()
    old, new = (float(runs.mean(0).sum() / total) for runs in (joined.before, joined.after))
    relative = entry["aggregation"] == "exp_ratio"
    if relative:
        old, new = (math.exp(min(value, 700.0)) for value in (old, new))
    return Claim(
        task,
        metric,
        first.name,
        second.name,
        old,
        new,
        judge(joined.before, joined.after, joined.clusters, joined.weights),
        len(joined.ids),
        len(np.unique(joined.clusters)),
        entry["higher_is_better"],
        relative,
        margin,
    )


def mean_claim(claims: Sequence[Claim]) -> Claim | None:
    """The mean over the tasks of two contenders; None unless two of them have shares in common.

    Only scores from 0 to 1 of which more is better have a mean that says something. The degrees of
    freedom follow Satterthwaite.
    """
    shares = [
        one
        for one in claims
        if one.higher_is_better
        and not one.relative
        and min(one.before, one.after) >= 0
        and max(one.before, one.after) <= 1
    ]
    if len(shares) < 2:
        return None
    count = len(shares)
    parts = [(one.test.standard_error / count) ** 2 for one in shares]
    variance = sum(parts)
    freedom = sum(part**2 / one.test.df for part, one in zip(parts, shares, strict=True))
    known = 0 < variance < math.inf
    df = variance**2 / freedom if known else min(one.test.df for one in shares)
    mean = sum(one.test.difference for one in shares) / count
    return replace(
        shares[0],
        task=MEAN,
        metric="",
        before=sum(one.before for one in shares) / count,
        after=sum(one.after for one in shares) / count,
        test=StudentT(mean, math.sqrt(variance), df),
        items=sum(one.items for one in shares),
        clusters=sum(one.clusters for one in shares),
    )


def adjusted(claims: Sequence[Claim], correction: str) -> list[Claim]:
    """The claims with p-values adjusted for their number, by a name of `CORRECTIONS`."""
    adjust = CORRECTIONS[correction]
    p = adjust(np.array([one.test.p() for one in claims]))
    p_same = adjust(np.array([one.raw_p_same() for one in claims]))
    return [
        replace(one, p=float(p[place]), p_same=float(p_same[place]))
        for place, one in enumerate(claims)
    ]


def _of_single_runs(
    before: np.ndarray, after: np.ndarray, clusters: np.ndarray, weights: np.ndarray | None
) -> Test:
    return paired_difference(before[0], after[0], clusters, weights)
