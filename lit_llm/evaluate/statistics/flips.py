"""Differences of few clusters, judged by flipping the signs of whole clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from lit_llm.evaluate.statistics.student import LEVEL, StudentT

FEWEST = 7
"""Clusters below which the flips are too few for a p-value of 5%."""
_ALL = 12  # clusters up to which every pattern of signs is tried
_DRAWN = 5000  # patterns above that, and their opposites


@dataclass(frozen=True)
class SignFlips:
    """The sign-flip test of a mean difference, with its interval (Fisher 1935).

    If the models do not differ, each cluster's sum of differences is as likely with the opposite
    sign. The p-value is the share of sign patterns whose sum is at least as far from 0; patterns
    as far as the observed one count half (mid-p). A shift is tested by taking it off each item
    first, and the interval holds the shifts that are not rejected. It needs no normal distribution,
    only one that is symmetric.

    Attributes:
        sums: (clusters,) sums of the items' differences.
        sizes: (clusters,) numbers of items.
        approximate: the t test of the same clusters, for the standard error and the power.
    """

    sums: np.ndarray
    sizes: np.ndarray
    approximate: StudentT
    name: str = "sign flips"

    @property
    def difference(self) -> float:
        """Mean difference of the items."""
        return self.approximate.difference

    @property
    def standard_error(self) -> float:
        """Clustered, of the difference."""
        return self.approximate.standard_error

    @property
    def df(self) -> float:
        """Degrees of freedom of the standard error."""
        return self.approximate.df

    def p(self) -> float:
        """Two-sided p-value of no difference."""
        above = self.above(0.0)
        return min(1.0, 2 * min(above, 1 - above))

    def above(self, shift: float) -> float:
        """One-sided p-value of a true difference of at most ``shift``."""
        sums, sizes = self._of_patterns
        flipped = sums - shift * sizes
        observed = flipped[0]
        near = 1e-9 * float(np.abs(flipped).max())
        beyond = np.count_nonzero(flipped > observed + near)
        equal = np.count_nonzero(np.abs(flipped - observed) <= near)
        return (beyond + equal / 2) / len(flipped)

    def below(self, shift: float) -> float:
        """One-sided p-value of a true difference of at least ``shift``."""
        return 1 - self.above(shift)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval of the true difference."""
        reach = 10 * self.standard_error * (1 + abs(self.approximate.interval(level)[1]))
        tail = (1 - level) / 2

        def end(outside: float) -> float:
            inside = self.difference
            for _ in range(30):
                middle = (inside + outside) / 2
                p = self.above(middle) if outside < self.difference else self.below(middle)
                if p > tail:
                    inside = middle
                else:
                    outside = middle
            return (inside + outside) / 2

        low, high = end(self.difference - reach), end(self.difference + reach)
        if self.p() > 1 - level:  # 0 may be the end itself, and is met to rounding only
            low, high = min(low, 0.0), max(high, 0.0)
        return low, high

    def smallest(self) -> float:
        """The true difference that is found with a probability of 80%, by the t test."""
        return self.approximate.smallest()

    @cached_property
    def _of_patterns(self) -> tuple[np.ndarray, np.ndarray]:
        signs = _signs(len(self.sums))
        return signs @ self.sums, signs @ self.sizes


@lru_cache(maxsize=64)
def _signs(clusters: int) -> np.ndarray:
    """Patterns (patterns, clusters) of +1 and -1, each with its opposite.

    The first one is the observed one.
    """
    if clusters <= _ALL:
        bits = np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1
        return 1.0 - 2.0 * bits
    drawn = np.random.default_rng(clusters).integers(0, 2, (_DRAWN, clusters))
    drawn[0] = 1
    half = 2.0 * drawn - 1.0
    return np.concatenate([half, -half])
