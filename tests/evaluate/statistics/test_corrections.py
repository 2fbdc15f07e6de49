"""Corrections against scipy and by their definition; one model's interval; runs with seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llm.evaluate.statistics.corrections import CORRECTIONS, benjamini_hochberg, holm
from lit_llm.evaluate.statistics.seeds import difference_of_recipes
from lit_llm.evaluate.statistics.single import score_interval, wilson

stats = pytest.importorskip("scipy.stats")
P = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P)
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    assert benjamini_hochberg(np.array(p)) == pytest.approx(stats.false_discovery_control(p))


@given(P)
def test_holm_by_its_definition(p: list[float]) -> None:
    """Rejected at 5% are the smallest ones while p <= 0.05 / (number not rejected yet)."""
    adjusted, left = holm(np.array(p)), len(p)
    rejected = set()
    for place in sorted(range(len(p)), key=p.__getitem__):
        if p[place] * left > 0.05:
            break
        rejected.add(place)
        left -= 1
    assert rejected == set(np.flatnonzero(adjusted <= 0.05))
    assert (adjusted >= np.array(p)).all() and (adjusted <= 1).all()


def test_holm_of_a_published_example() -> None:
    """0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(CORRECTIONS["none"](np.array([0.2]))) == [0.2]


def test_wilson_is_scipys() -> None:
    theirs = stats.binomtest(7, 50).proportion_ci(method="wilson")
    assert wilson(7 / 50, 50, stats.norm.ppf(0.975)) == pytest.approx((theirs.low, theirs.high))


def test_a_single_accuracy_counts_clusters() -> None:
    scores = np.repeat([1.0, 0.0], 20)
    independent = score_interval(scores)
    pairs = score_interval(scores, np.arange(40) // 2)  # two equal answers in each cluster
    half = score_interval(scores[::2])
    assert independent[0] == pairs[0] == 0.5
    assert pairs[1:] == pytest.approx(half[1:], abs=2e-3)
    assert pairs[2] - pairs[1] > 1.3 * (independent[2] - independent[1])
    all_right = score_interval(np.ones(40), np.arange(40) // 4)
    assert all_right[2] == pytest.approx(1) and 0.5 < all_right[1] < 0.8  # as of ten items


def test_other_scores_have_an_interval_by_t() -> None:
    scores = np.random.default_rng(0).normal(size=30)
    theirs = stats.t.interval(0.95, 29, scores.mean(), scores.std(ddof=1) / np.sqrt(30))
    assert score_interval(scores) == pytest.approx((scores.mean(), *theirs))


def runs(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Scores (count, 400) of the same items, with a shift for each run."""
    items = np.linspace(-1, 1, 400)
    noise = 0.3 * rng.normal(size=(count, 400))
    return items + noise + spread * rng.normal(size=(count, 1))


def test_training_noise_is_part_of_the_error() -> None:
    """Equal recipes whose runs differ: judged by two runs alone they differ, by all they do not."""
    rng, alarms, alarms_of_two = np.random.default_rng(1), 0, 0
    for _ in range(300):
        before, after = runs(rng, 4, 0.2), runs(rng, 4, 0.2)
        alarms += difference_of_recipes(before, after).p() <= 0.05
        alarms_of_two += abs(stats.ttest_rel(before[0], after[0]).statistic) > 1.97
    assert alarms / 300 < 0.09 and alarms_of_two / 300 > 0.5


def test_one_run_takes_the_others_spread() -> None:
    rng = np.random.default_rng(2)
    before, after = runs(rng, 3, 0.2), runs(rng, 1, 0.2)
    test = difference_of_recipes(before, after)
    spread = before.mean(1).var(ddof=1)
    assert test.standard_error**2 > spread * (1 + 1 / 3) and 2 <= test.df < 3
    assert test.difference == pytest.approx(after.mean() - before.mean())
