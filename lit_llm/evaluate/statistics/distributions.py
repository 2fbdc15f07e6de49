"""Student's t, the normal and the binomial distribution, without a dependency on scipy.

The base install has no scipy, and `ForgettingCheck` needs these functions there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
_LARGE = 1e6  # degrees of freedom above which t is normal to six digits


def normal_quantile(share: float) -> float:
    """The value below which ``share`` of a standard normal variable lies."""
    return _NORMAL.inv_cdf(share)


def normal_two_sided(z: float) -> float:
    """Probability that a standard normal variable is at least ``|z|`` away from 0."""
    return math.erfc(abs(z) / math.sqrt(2))


def t_two_sided(t: float, df: float) -> float:
    """Probability that Student's t with ``df`` degrees of freedom is at least ``|t|`` from 0."""
    if math.isinf(t):
        return 0.0
    if df > _LARGE:
        return normal_two_sided(t)
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(share: float, df: float) -> float:
    """The value below which ``share`` (0.5 to 1) of Student's t with ``df`` > 0 lies."""
    assert 0.5 <= share < 1 and df > 0
    if df > _LARGE:
        return normal_quantile(share)
    low, high = 0.0, 2.0
    while t_two_sided(high, df) / 2 > 1 - share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if t_two_sided(middle, df) / 2 > 1 - share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@lru_cache(maxsize=4096)
def binomial_mid_p(smaller: int, total: int) -> float:
    """Two-sided mid-p of ``smaller`` of ``total`` fair coin tosses; ``2 * smaller <= total``.

    The observed count enters with half of its probability (Lancaster 1961), so the test is not
    conservative as the exact one is.
    """
    assert 0 <= 2 * smaller <= total
    k = np.arange(smaller + 1)
    steps = np.log((total - k[:-1]) / (k[1:])) if smaller else np.zeros(0)
    logs = -total * math.log(2) + np.concatenate([[0.0], np.cumsum(steps)])
    terms = np.exp(logs)
    return min(1.0, float(2 * (terms.sum() - terms[-1] / 2)))


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _incomplete_beta(1 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a
    value, upper, lower = 1.0, 1.0, 0.0  # Lentz's method
    for step in range(1, 5000):
        half = step // 2
        if step % 2:
            part = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        else:
            part = half * (b - half) * x / ((a + step - 1) * (a + step))
        lower = 1 / (1 + part * lower)
        upper = 1 + part / upper
        value *= lower * upper
        if abs(lower * upper - 1) < 1e-15:
            break
    return min(1.0, front / value)
