"""Our distributions are scipy's, which lm-eval installs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llm.evaluate.statistics.distributions import (
    binomial_mid_p,
    normal_quantile,
    normal_two_sided,
    t_quantile,
    t_two_sided,
)

stats = pytest.importorskip("scipy.stats")


@given(st.floats(0.01, 60), st.floats(1, 1e5))
def test_t(t: float, df: float) -> None:
    assert t_two_sided(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-6, abs=1e-300)
    assert t_two_sided(-t, df) == t_two_sided(t, df)


@given(st.floats(0.51, 0.9999), st.floats(1, 1e5))
def test_t_quantile(share: float, df: float) -> None:
    assert t_quantile(share, df) == pytest.approx(stats.t.ppf(share, df), rel=1e-6, abs=1e-7)


def test_t_with_many_degrees_of_freedom_is_normal() -> None:
    assert t_quantile(0.975, 1e7) == normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-6)
    assert t_two_sided(2.0, 1e7) == normal_two_sided(2.0) == pytest.approx(2 * stats.norm.sf(2.0))


@given(st.integers(0, 3000), st.data())
def test_mid_p(total: int, data: st.DataObject) -> None:
    smaller = data.draw(st.integers(0, total // 2))
    half = stats.binom.cdf(smaller, total, 0.5) - stats.binom.pmf(smaller, total, 0.5) / 2
    assert binomial_mid_p(smaller, total) == pytest.approx(min(1, 2 * half), rel=1e-8, abs=1e-300)
