"""The interval of one model's score."""

from __future__ import annotations

import math

import numpy as np

from lit_llm.evaluate.statistics.distributions import t_quantile
from lit_llm.evaluate.statistics.paired import cluster_sums, clustered_t, is_right_or_wrong
from lit_llm.evaluate.statistics.student import LEVEL


def score_interval(
    scores: np.ndarray, clusters: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[float, float, float]:
    """The mean score, or the ratio of the sums of scores and weights, with its 95% interval.

    Right and wrong answers have Wilson's interval (1927, Journal of the American Statistical
    Association 22:209) with the effective number of items: that of independent items with the same
    standard error (Dean, Pagano 2015, Journal of Survey Statistics and Methodology 3:484), and a
    t quantile of clusters - 1. Other scores have the interval of the clustered t test.

    Args:
        scores: (n,), n >= 1.
        clusters: (n,), see `paired_difference`.
        weights: (n,), see `paired_difference`.

    Returns:
        The value, the lower and the upper end.
    """
    sums, sizes = cluster_sums(scores, clusters, weights)
    by_t = clustered_t(sums, sizes)
    if weights is not None or not is_right_or_wrong(scores) or len(sums) == 1:
        return by_t.difference, *by_t.interval()
    share, n = by_t.difference, len(scores)
    effective = float(len(sums))  # all right or all wrong: a cluster counts as one item
    if by_t.standard_error:
        effective = min(n, share * (1 - share) / by_t.standard_error**2)
    return share, *wilson(share, effective, t_quantile((1 + LEVEL) / 2, by_t.df))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share of ``n`` items, for the quantile ``z``."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
