"""Packing: every example once, no row too full, and the same rows for the same seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.packing import PackedOrder, pack

lengths_lists = st.lists(st.integers(1, 50), min_size=1, max_size=300).map(np.array)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_lists, capacity=st.integers(50, 200))
def test_every_example_once_and_no_row_too_full(lengths: np.ndarray, capacity: int) -> None:
    rows = pack(lengths, np.arange(len(lengths)), capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= capacity for row in rows)
    # No two neighbours in time could have shared a row: best fit leaves at most one row half empty
    # at a time.
    assert sum(lengths[row].sum() <= capacity // 2 for row in rows) <= 1 + len(rows) // 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=lengths_lists,
    epochs=st.sampled_from([0.3, 1.0, 2.5]),
    seed=st.integers(0, 5),
    packing=st.booleans(),
)
def test_an_epoch_is_a_pass_and_pure(
    lengths: np.ndarray, epochs: float, seed: int, packing: bool
) -> None:
    order = PackedOrder(lengths, 64, epochs, seed, packing)
    assert order.rows == PackedOrder(lengths, 64, epochs, seed, packing).rows
    counts = np.bincount([i for row in order.rows for i in row], minlength=len(lengths))
    assert counts.min() >= int(epochs) and counts.max() <= -(-epochs // 1)
    if not packing:
        assert all(len(row) == 1 for row in order.rows)


def test_little_is_wasted_on_many_short_examples() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 2000)
    rows = pack(lengths, np.arange(2000), 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.97
