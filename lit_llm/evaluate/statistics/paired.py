"""The difference of a mean score between two models that were asked the same items."""

from __future__ import annotations

import math

import numpy as np

from lit_llm.evaluate.statistics.flips import FEWEST, SignFlips
from lit_llm.evaluate.statistics.right_wrong import RightWrong
from lit_llm.evaluate.statistics.student import StudentT

Test = StudentT | RightWrong | SignFlips
"""How a difference is judged: difference, standard_error, df, p, above, below, interval, smallest.
"""
FEW_ITEMS, FEW_CLUSTERS = 200, 30
"""Below either, graded scores are judged by sign flips and not by t."""


def paired_difference(
    before: np.ndarray,
    after: np.ndarray,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Test:
    """Judge the mean of ``after - before``, or the ratio of its sum to that of ``weights``.

    Differences are paired: items are easy or hard for both models, so differences of single items
    vary less than scores do. Standard errors are clustered, with a t quantile of clusters - 1
    (Miller 2024, arXiv:2411.00640, sections 2.2 and 4.2). Which test is used was decided by
    simulation (``benchmarks/compare_calibration.py``):

    - right and wrong answers: McNemar's mid-p test for independent items, else t;
    - graded scores of fewer than 200 items or 30 clusters, but of 7 clusters at least: sign flips
      of whole clusters;
    - else t.

    Args:
        before: scores (n,) of the first model; n >= 1.
        after: scores (n,) of the second model, of the same items.
        clusters: a number (n,) for each item, equal for items that depend on each other, such as
            questions on one passage. None: items are independent.
        weights: (n,), above 0, for scores that are divided by something: bits and the text's
            bytes. None: a mean.
    """
    n = len(before)
    assert n and len(after) == n
    difference = np.asarray(after, float) - np.asarray(before, float)
    right_or_wrong = weights is None and is_right_or_wrong(before) and is_right_or_wrong(after)
    sums, sizes = cluster_sums(difference, clusters, weights)
    by_t = clustered_t(sums, sizes)
    if right_or_wrong and (len(sums) == n or 0 < by_t.standard_error < math.inf):
        wins, losses = (int(np.count_nonzero(sign * difference > 0)) for sign in (1, -1))
        return RightWrong(wins, losses, n, None if len(sums) == n else by_t)
    if weights is None and by_t.standard_error == 0 and _is_share(before) and _is_share(after):
        # No cluster differs from another. An interval without a width would claim too much, so
        # each cluster counts as one right or wrong answer.
        mean, count = by_t.difference, len(sums)
        return RightWrong(round(count * max(mean, 0)), round(count * max(-mean, 0)), count)
    few = n < FEW_ITEMS or len(sums) < FEW_CLUSTERS
    if few and not right_or_wrong and len(sums) >= FEWEST and by_t.standard_error > 0:
        return SignFlips(sums, sizes, by_t)
    return by_t


def clustered_t(sums: np.ndarray, sizes: np.ndarray) -> StudentT:
    """The mean of the items of clusters with its clustered standard error.

    Its square is sum over clusters of (sum - size * mean)^2 / n^2, times
    clusters / (clusters - 1).

    Args:
        sums: (clusters,) sums of the items' values.
        sizes: (clusters,) numbers of items, or the items' weights.
    """
    count, n = len(sums), float(sizes.sum())
    mean = float(sums.sum()) / n
    if count == 1:
        return StudentT(mean, math.inf, 1)
    deviation = sums - sizes * mean
    variance = float(deviation @ deviation) * count / (count - 1) / n**2
    # A constant difference leaves rounding errors, not a spread.
    if variance < (1e-12 * max(abs(mean), 1e-300)) ** 2:
        variance = 0.0
    return StudentT(mean, math.sqrt(variance), count - 1)


def cluster_sums(
    values: np.ndarray, clusters: np.ndarray | None, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums (clusters,) of ``values`` (n,), and those of ``weights`` or the numbers of items."""
    values, each = np.asarray(values, float), np.ones(len(values)) if weights is None else weights
    if clusters is None:
        return values, each
    _, codes = np.unique(clusters, return_inverse=True)
    return np.bincount(codes, values), np.bincount(codes, each)


def is_right_or_wrong(scores: np.ndarray) -> bool:
    """Whether all scores (n,) are 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def _is_share(scores: np.ndarray) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())
