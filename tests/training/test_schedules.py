"""Learning-rate multipliers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llm.errors import UserError
from lit_llm.training.schedules import lr_multiplier


@given(
    st.sampled_from(["wsd", "cosine", "linear", "constant"]), st.integers(1, 500),
    st.floats(0, 0.4), st.floats(0, 0.6), st.floats(0, 1),
)  # fmt: skip
def test_rises_then_never_rises_again(
    kind, steps: int, warmup: float, decay: float, final: float
) -> None:
    multiplier = lr_multiplier(kind, steps, warmup=warmup, decay=decay, final=final)
    values = [multiplier(step) for step in range(steps + 5)]
    peak = round(warmup * steps)
    assert all(0 <= v <= 1 for v in values)
    assert all(a < b for a, b in itertools.pairwise(values[:peak]))
    assert all(a >= b for a, b in itertools.pairwise(values[peak:]))
    if kind == "constant" or (kind == "wsd" and round(decay * steps) == 0):
        assert values[-1] == 1
    elif peak < steps:
        assert values[-1] == pytest.approx(final)  # beyond the horizon too


def test_wsd_by_hand() -> None:
    multiplier = lr_multiplier("wsd", 10, warmup=0.2, decay=0.5, final=0.0)
    assert [round(multiplier(s), 3) for s in range(10)] == [
        0.333,
        0.667,
        1,
        1,
        1,
        1,
        0.8,
        0.6,
        0.4,
        0.2,
    ]


def test_fractions_must_fit() -> None:
    with pytest.raises(UserError, match="must fit"):
        lr_multiplier("wsd", 10, warmup=0.6, decay=0.6, final=0)
