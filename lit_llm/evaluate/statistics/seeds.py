"""Runs that differ by their seed alone: the noise of training beside that of the items."""

from __future__ import annotations

import math

import numpy as np

from lit_llm.evaluate.statistics.paired import cluster_sums, clustered_t
from lit_llm.evaluate.statistics.student import StudentT


def difference_of_recipes(
    before: np.ndarray,
    after: np.ndarray,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> StudentT:
    """Judge the mean difference of two recipes, of which several runs each answered the items.

    The variance is that of the items, as in `paired_difference` on the means of the runs, and the
    variance of the runs' scores over the number of runs. A run's score varies by the items' share
    of chance too, which the first part holds already, so the sum is too large by at most that. If
    one recipe has one run only, the spread of the other's runs stands for both. The degrees of
    freedom follow Satterthwaite (1946, Biometrics Bulletin 2:110).

    Args:
        before: scores (runs, n) of the first recipe; two runs at least of one of the recipes.
        after: scores (runs, n) of the second recipe, of the same items.
        clusters: see `paired_difference`.
        weights: see `paired_difference`.
    """
    difference = after.mean(0) - before.mean(0)
    items = clustered_t(*cluster_sums(difference, clusters, weights))
    total = len(difference) if weights is None else float(weights.sum())
    parts = [(items.standard_error**2, items.df)]
    several = [runs for runs in (before, after) if len(runs) > 1]
    spreads = [float((runs.sum(1) / total).var(ddof=1)) for runs in several]
    if len(several) == 2:
        parts += [
            (spread / len(runs), len(runs) - 1)
            for runs, spread in zip(several, spreads, strict=True)
        ]
    else:
        parts.append((spreads[0] * (1 / len(before) + 1 / len(after)), len(several[0]) - 1))
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:
        return StudentT(items.difference, items.standard_error, items.df, "t over runs")
    df = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return StudentT(items.difference, math.sqrt(variance), df, "t over runs")
