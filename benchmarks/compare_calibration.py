"""Do the claims of ``lit_llm compare`` hold? Simulated pairs of models, whose truth is known.

    python benchmarks/compare_calibration.py

For 50, 200 and 1,000 items, in clusters of 1 and 5, at an accuracy of 0.3 and 0.9: how often two
equal models are called different, how often the 95% intervals hold the truth, and how often a
difference is found that is as large as the announced smallest one. Beside them, on the same items:
the unpaired z-test of lm-eval's comparator, and standard errors without clusters.

An item is answered right if the sum of normal variables stays below a threshold: how hard the item
is for both models, how hard its cluster is for both and for this model, and chance. With a
difference, one model's accuracy is above the named one by half of it, the other's below. Where the
better one would be above 0.995 both are lowered.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from record import write_result

from lit_llm.evaluate.statistics.corrections import holm
from lit_llm.evaluate.statistics.distributions import normal_two_sided
from lit_llm.evaluate.statistics.items_needed import items_needed
from lit_llm.evaluate.statistics.paired import Test, cluster_sums, clustered_t, paired_difference
from lit_llm.evaluate.statistics.student import StudentT

ITEMS, CLUSTERS, ACCURACIES = (50, 200, 1000), (1, 5), (0.3, 0.9)
# Shares of the variance: of the item for both models, of its cluster for both, and of its cluster
# for one model. The rest is chance.
ITEM, CLUSTER, CLUSTER_AND_MODEL = 0.4, 0.1, 0.15
HIGHEST = 0.995
GOALS = {
    "false_alarms": (0.035, 0.055), "coverage": (0.93, 0.97),
    "coverage_with_difference": (0.93, 0.97), "power": (0.77, 0.83),
}  # fmt: skip


def answers(
    rng: np.random.Generator, items: int, size: int, accuracy: float, difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right (1.0) and wrong (0.0) answers (items,) of two models; clusters of ``size`` items."""
    shared = math.sqrt(ITEM) * rng.standard_normal(items)
    rest = 1 - ITEM
    if size > 1:
        shared += math.sqrt(CLUSTER) * of_clusters(rng, items, size)
        rest -= CLUSTER + CLUSTER_AND_MODEL
    better = min(accuracy + difference / 2, HIGHEST)
    found = []
    for right in (better - difference, better):
        value = shared + math.sqrt(rest) * rng.standard_normal(items)
        if size > 1:
            value += math.sqrt(CLUSTER_AND_MODEL) * of_clusters(rng, items, size)
        found.append((value < NormalDist().inv_cdf(right)).astype(float))
    return found[0], found[1]


def of_clusters(rng: np.random.Generator, items: int, size: int) -> np.ndarray:
    """A normal variable for each cluster, repeated for its items."""
    return np.repeat(rng.standard_normal(items // size), size)


def holds(test: Test, truth: float) -> bool:
    """Whether the 95% interval holds the true difference."""
    low, high = test.interval()
    return low <= truth <= high


def unpaired(before: np.ndarray, after: np.ndarray) -> float:
    """p-value of lm-eval's ``scripts/model_comparator.py``: z of two independent samples."""
    variance = (before.var(ddof=1) + after.var(ddof=1)) / len(before)
    return normal_two_sided((after.mean() - before.mean()) / math.sqrt(variance)) if variance else 1


def unclustered(before: np.ndarray, after: np.ndarray) -> float:
    """p-value of the paired t test that takes each item for independent."""
    return clustered_t(*cluster_sums(after - before, None)).p()


def cell(
    rng: np.random.Generator, items: int, size: int, accuracy: float, pairs: int
) -> tuple[dict[str, object], np.ndarray]:
    """Rates of one cell of the grid, and the p-values (pairs,) without a difference."""
    clusters = np.arange(items) // size if size > 1 else None
    p, held, smallest, other = np.empty(pairs), 0, np.empty(pairs), np.empty((pairs, 2))
    for number in range(pairs):
        before, after = answers(rng, items, size, accuracy, 0)
        test = paired_difference(before, after, clusters)
        p[number], smallest[number] = test.p(), test.smallest()
        held += holds(test, 0)
        other[number] = unpaired(before, after), unclustered(before, after)
    difference = float(smallest.mean())
    found, held_then, by_z = 0, 0, 0
    for _ in range(pairs):
        before, after = answers(rng, items, size, accuracy, difference)
        test = paired_difference(before, after, clusters)
        found += test.p() <= 0.05
        held_then += holds(test, difference)
        by_z += unpaired(before, after) <= 0.05
    row = {
        "items": items, "cluster_size": size, "accuracy": accuracy, "test": test.name,
        "false_alarms": float((p <= 0.05).mean()), "coverage": held / pairs,
        "smallest_difference": difference, "power": found / pairs,
        "coverage_with_difference": held_then / pairs,
        "unpaired_z_false_alarms": float((other[:, 0] <= 0.05).mean()),
        "unpaired_z_power": by_z / pairs,
        "unclustered_false_alarms": float((other[:, 1] <= 0.05).mean()),
    }  # fmt: skip
    return row, p


def graded(rng: np.random.Generator, documents: int, pairs: int) -> dict[str, object]:
    """Sign flips and t on skewed scores: bits of documents of very different difficulty."""
    rates = {"sign_flips": [0, 0], "t": [0, 0]}
    for _ in range(pairs):
        spread = np.exp(rng.standard_normal(documents))
        before = spread * rng.standard_normal(documents)
        after = spread * rng.standard_normal(documents)
        flips = paired_difference(before, after)
        for name, test in (("sign_flips", flips), ("t", by_t(after - before))):
            rates[name][0] += test.p() <= 0.05
            rates[name][1] += holds(test, 0)
    return {"documents": documents} | {
        f"{name}_{what}": count / pairs
        for name, counts in rates.items()
        for what, count in zip(("false_alarms", "coverage"), counts, strict=True)
    }


def ratios(rng: np.random.Generator, documents: int, pairs: int) -> dict[str, object]:
    """Bits per byte of texts of very different lengths, also by a percentile bootstrap."""
    held = {"compare": 0, "bootstrap_of_documents": 0}
    for _ in range(pairs):
        lengths = np.exp(rng.standard_normal(documents))
        before, after = lengths * (2 + 0.2 * rng.standard_normal((2, documents)))
        held["compare"] += holds(paired_difference(before, after, weights=lengths), 0)
        drawn = rng.integers(documents, size=(500, documents))
        resampled = (after - before)[drawn].sum(1) / lengths[drawn].sum(1)
        low, high = np.quantile(resampled, (0.025, 0.975))
        held["bootstrap_of_documents"] += low <= 0 <= high
    return {"documents": documents} | {
        f"{name}_coverage": int(count) / pairs for name, count in held.items()
    }


def by_t(values: np.ndarray) -> StudentT:
    """t test of the mean of independent values (n,)."""
    return clustered_t(values, np.ones(len(values)))


def announced(rng: np.random.Generator, size: int, pairs: int) -> dict[str, object]:
    """A difference of two points, with the items that a first comparison of 200 announced."""
    needed = []
    for _ in range(200):
        before, after = answers(rng, 200, size, 0.7, 0)
        clusters = np.arange(200) // size
        needed.append(items_needed(paired_difference(before, after, clusters), 200, 0.02))
    items = math.ceil(float(np.median(needed)) / size) * size
    found = 0
    for _ in range(pairs):
        before, after = answers(rng, items, size, 0.7, 0.02)
        found += paired_difference(before, after, np.arange(items) // size).p() <= 0.05
    return {"difference": 0.02, "cluster_size": size, "items": items, "found": found / pairs}


def grid() -> Iterator[tuple[int, int, float]]:
    """Items, items in a cluster, accuracy."""
    for items in ITEMS:
        for size in CLUSTERS:
            for accuracy in ACCURACIES:
                yield items, size, accuracy


def outside(rows: list[dict[str, object]]) -> list[str]:
    """The rates that miss their goal, in words."""
    return [
        f"{row['items']} items in clusters of {row['cluster_size']}, accuracy {row['accuracy']}: "
        f"{name} {row[name]:.4f}, goal {low} to {high}"
        for row in rows
        for name, (low, high) in GOALS.items()
        if not low <= float(row[name]) <= high
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000, help="simulated pairs for each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="few pairs; nothing is written")
    given = parser.parse_args()
    if given.dry_run:
        given.pairs = 10
    started = time.perf_counter()
    rows, without_difference = [], []
    for number, (items, size, accuracy) in enumerate(grid()):
        rng = np.random.default_rng([given.seed, number])
        row, p = cell(rng, items, size, accuracy, given.pairs)
        rows.append(row)
        without_difference.append(p)
        print(json.dumps(row), flush=True)
    tasks = np.array(without_difference)  # (12 tasks, pairs)
    claims = float((np.apply_along_axis(holm, 0, tasks) <= 0.05).any(0).mean())
    uncorrected = float((tasks <= 0.05).any(0).mean())
    rng = np.random.default_rng([given.seed, 99])
    scores = [graded(rng, documents, given.pairs // 5) for documents in (8, 20, 50)]
    prose = [ratios(rng, documents, given.pairs // 5) for documents in (10, 20, 50, 300)]
    two_points = [announced(rng, size, given.pairs // 5) for size in CLUSTERS]
    result = {
        "pairs": given.pairs, "cells": rows, "goals": GOALS, "missed": outside(rows),
        "twelve_tasks_any_false_claim": {"holm": claims, "uncorrected": uncorrected},
        "graded_scores": scores, "ratios": prose, "announced_items": two_points,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    print(json.dumps({key: result[key] for key in list(result)[3:]}, indent=1))
    if not given.dry_run:
        print(write_result("compare_calibration", result))


if __name__ == "__main__":
    main()
