"""Goodput: the formula against runs that fail at random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner import simulated_goodput

from lit_llm.plan.goodput import GPU_HOURS_PER_FAILURE, goodput


@pytest.mark.parametrize("gpus", [6_000, 16_384, 50_000])
def test_formula_against_chance(gpus: int) -> None:
    assert goodput(gpus).share == pytest.approx(
        simulated_goodput(gpus, hours=30_000, seed=gpus), rel=0.02
    )


def test_the_interval_is_the_best_one() -> None:
    import math

    found = goodput(6_000)
    mean, pause, restart = found.mean_hours_between_failures, 30 / 3600, 10 / 60

    def share(interval: float) -> float:
        return interval / (mean * math.exp(restart / mean) * math.expm1((interval + pause) / mean))

    best = max(share(0.02 * i) for i in range(1, 200))
    assert found.share == pytest.approx(share(found.checkpoint_hours)) and found.share > best - 1e-4
    assert mean == pytest.approx(GPU_HOURS_PER_FAILURE / 6_000)


@given(st.integers(1, 100_000))
def test_more_machines_fail_more(gpus: int) -> None:
    few, many = goodput(gpus), goodput(2 * gpus)
    assert 0 < many.share < few.share < 1 and many.checkpoint_hours < few.checkpoint_hours
