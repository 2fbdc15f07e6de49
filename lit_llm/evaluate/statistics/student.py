"""A difference with a standard error, judged by Student's t."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_llm.evaluate.statistics.distributions import t_quantile, t_two_sided

POWER = 0.8
"""Probability with which the announced differences are found."""
LEVEL = 0.95
"""Of all intervals; a claim is made at a p-value of at most 1 - LEVEL."""


@dataclass(frozen=True)
class StudentT:
    """An estimate whose error is known from ``df + 1`` independent parts.

    Attributes:
        difference: the estimate.
        standard_error: 0 if no part differs from another; infinite if there is one part only.
        df: degrees of freedom.
        name: what the test is called in tables.
    """

    difference: float
    standard_error: float
    df: float
    name: str = "t"

    def p(self) -> float:
        """Two-sided p-value of no difference."""
        return t_two_sided(self._statistic(0.0), self.df)

    def above(self, shift: float) -> float:
        """One-sided p-value of a true difference of at most ``shift``."""
        t = self._statistic(shift)
        half = t_two_sided(t, self.df) / 2
        return half if t > 0 else 1 - half

    def below(self, shift: float) -> float:
        """One-sided p-value of a true difference of at least ``shift``."""
        return 1 - self.above(shift)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval of the true difference."""
        half = t_quantile((1 + level) / 2, self.df) * self.standard_error
        return self.difference - half, self.difference + half

    def smallest(self) -> float:
        """The true difference that is found with a probability of `POWER`."""
        return (
            t_quantile((1 + LEVEL) / 2, self.df) + t_quantile(POWER, self.df)
        ) * self.standard_error

    def _statistic(self, shift: float) -> float:
        if self.standard_error == 0:
            over = self.difference - shift
            return math.copysign(math.inf, over) if over else 0.0
        return (self.difference - shift) / self.standard_error
