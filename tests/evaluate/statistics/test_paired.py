"""Tests and intervals of paired differences: published examples, other libraries, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.evaluate.statistics.flips import SignFlips
from lit_llm.evaluate.statistics.items_needed import items_needed
from lit_llm.evaluate.statistics.paired import Test, clustered_t, paired_difference
from lit_llm.evaluate.statistics.right_wrong import RightWrong
from lit_llm.evaluate.statistics.student import StudentT

stats = pytest.importorskip("scipy.stats")


def flips(wins: int, losses: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two models with so many items won, lost, and the same."""
    before = np.array([0] * wins + [1] * losses + [1] * same, float)
    after = np.array([1] * wins + [0] * losses + [1] * same, float)
    return before, after


def test_mcnemars_mid_p_of_a_published_table() -> None:
    """Fagerland, Lydersen, Laake 2013, table 1: 1 and 7 discordant of 21 pairs; mid-p 0.039."""
    test = paired_difference(*flips(1, 7, 13))
    assert test.name == "McNemar mid-p" and test.p() == pytest.approx(0.0391, abs=5e-5)


@pytest.mark.parametrize(("wins", "losses", "n"), [(12, 2, 44), (0, 1, 44), (0, 0, 40)])
def test_tangos_interval(wins: int, losses: int, n: int) -> None:
    """(0, 1, 44) is his contact lenses: -0.118 to 0.059."""
    plain, found = score_interval_by_search(wins, losses, n), RightWrong(wins, losses, n).interval()
    assert found == pytest.approx(plain, abs=1e-6)


def test_the_interval_follows_the_mid_p_test() -> None:
    """4 of 4 flips: the score test says p = 0.0455, mid-p 0.0625."""
    assert score_interval_by_search(4, 0, 50)[0] > 0
    test = RightWrong(4, 0, 50)
    assert test.p() == pytest.approx(0.0625)
    assert test.interval()[0] == pytest.approx(0, abs=1e-6)


def score_interval_by_search(wins: int, losses: int, n: int) -> tuple[float, float]:
    """The shifts whose likelihood, maximised numerically, gives a score within 1.96."""
    optimize = pytest.importorskip("scipy.optimize")

    def score(shift: float) -> float:
        def loss(q: float) -> float:
            parts = ((wins, q + shift), (losses, q), (n - wins - losses, 1 - 2 * q - shift))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

        bounds = (max(0.0, -shift), (1 - shift) / 2)
        q = optimize.minimize_scalar(loss, bounds=bounds, method="bounded",
                                     options={"xatol": 1e-12}).x  # fmt: skip
        return (wins - losses - n * shift) / math.sqrt(n * (2 * q + shift * (1 - shift)))

    d = (wins - losses) / n
    z = stats.norm.ppf(0.975)
    return (
        optimize.brentq(lambda s: score(s) - z, -0.99, d - 1e-9),
        optimize.brentq(lambda s: score(s) + z, d + 1e-9, 0.99),
    )


def test_without_clusters_graded_scores_have_the_t_test() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 500))
    test, theirs = paired_difference(before, after), stats.ttest_rel(after, before)
    assert isinstance(test, StudentT)
    assert test.p() == pytest.approx(theirs.pvalue)
    assert test.interval() == pytest.approx(tuple(theirs.confidence_interval()))


def test_clustered_errors_are_those_of_millers_formula() -> None:
    """arXiv:2411.00640, equation 4: the sum over pairs of items in one cluster."""
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 60, 400)
    before, after = rng.normal(size=(2, 400)) + rng.normal(size=60)[clusters]
    d = after - before
    together = clusters[:, None] == clusters[None, :]
    deviation = d - d.mean()
    variance = (np.outer(deviation, deviation) * together).sum() / 400**2
    groups = len(np.unique(clusters))
    test = paired_difference(before, after, clusters)
    assert test.standard_error**2 == pytest.approx(variance * groups / (groups - 1))
    assert test.df == groups - 1


def test_sign_flips_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    d = rng.exponential(size=10) - 0.6
    test = paired_difference(np.zeros(10), d)
    theirs = stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert isinstance(test, SignFlips)
    # Ours counts the observed pattern and its opposite half.
    assert test.p() == pytest.approx(theirs.pvalue - 1 / 2**10)


@given(st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=2, max_size=60),
       st.sampled_from([1, 3]))  # fmt: skip
@settings(deadline=None)
def test_interval_and_test_of_right_and_wrong_agree(
    answers: list[tuple[int, int]], size: int
) -> None:
    before, after = np.array(answers, float).T
    clusters = np.arange(len(before)) // size
    test, back = (paired_difference(*pair, clusters) for pair in ((before, after), (after, before)))
    check(test)
    if clusters[-1] == 0:
        return
    low, high = test.interval()
    assert -1 <= low < high <= 1 and high - low > 1e-3  # never without a width
    assert back.p() == pytest.approx(test.p())
    assert back.interval() == pytest.approx((-high, -low), abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.sampled_from([1, 4]))
@settings(deadline=None, max_examples=40)
def test_interval_and_test_of_graded_scores_agree(differences: list[float], size: int) -> None:
    after = 10 + np.array(differences)
    test = paired_difference(np.full(len(after), 10.0), after, np.arange(len(after)) // size)
    check(test)


def check(test: Test) -> None:
    """What holds of every test."""
    p, (low, high) = test.p(), test.interval()
    assert 0 <= p <= 1
    if abs(p - 0.05) > 1e-3 and math.isfinite(test.standard_error):
        assert (p > 0.05) == (low <= 0 <= high)
    wide = test.interval(0.99)
    assert wide[0] <= low + 1e-6 and wide[1] >= high - 1e-6
    assert low - 1e-6 <= test.difference <= high + 1e-6
    assert test.above(-10.5) <= 0.5 and test.below(10.5) <= 0.5
    assert test.above(0.3) + 1e-9 >= test.above(-0.3)  # the farther, the surer
    assert test.smallest() >= 0


def test_one_cluster_says_nothing() -> None:
    test = paired_difference(np.zeros(5), np.ones(5) * 0.5, np.zeros(5))
    assert test.p() == 1 and test.interval() == (-math.inf, math.inf)
    assert items_needed(test, 5, 0.01) == math.inf


def test_a_ratio_weighs_each_text_by_its_length() -> None:
    bits = np.array([8.0, 30.0, 11.0])
    weights = np.array([2.0, 10.0, 4.0])
    test = paired_difference(bits, bits + 0.1 * weights, weights=weights)
    assert test.difference == pytest.approx(0.1) and test.standard_error == pytest.approx(0)


def test_ratios_have_the_error_of_the_jackknife() -> None:
    rng = np.random.default_rng(3)
    weights = rng.uniform(50, 60, 300)
    before, after = weights * rng.normal(1, 0.2, (2, 300))
    test = paired_difference(before, after, weights=weights)
    left = [np.delete(after - before, i).sum() / np.delete(weights, i).sum() for i in range(300)]
    jackknife = math.sqrt(299 / 300 * ((left - np.mean(left)) ** 2).sum())
    assert test.standard_error == pytest.approx(jackknife, rel=0.01)


def test_items_needed_find_the_margin() -> None:
    """With the announced number the smallest difference is the margin, or a little less: the
    number also has to show that there is none."""
    test = paired_difference(*flips(30, 30, 240))
    n = items_needed(test, 300, 0.05)
    scale = n / 300
    larger = RightWrong(round(30 * scale), round(30 * scale), int(n))
    assert 0.046 < larger.smallest() <= 0.05
    by_t = clustered_t(np.array([1.0, -1.0, 2.0, -2.0] * 20), np.ones(80) * 5)
    n = items_needed(by_t, 400, 0.05)
    assert by_t.smallest() * math.sqrt(400 / n) == pytest.approx(0.05, rel=0.06)


def test_power_of_few_items_is_the_enumerated_one() -> None:
    """The smallest difference has a power of 80% in a simulation of its own assumption."""
    test = RightWrong(8, 8, 60)
    difference, flips_now = test.smallest(), 16 / 60
    share = (flips_now**4 + difference**4) ** (1 / 4)
    rng = np.random.default_rng(4)
    counts = rng.multinomial(
        60, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=4000
    )
    found = [RightWrong(int(w), int(b), 60).p() <= 0.05 for w, b, _ in counts]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
