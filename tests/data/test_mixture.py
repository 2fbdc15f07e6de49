"""Mixtures: shares are kept, sources are read in order and without gaps, and a position says it
all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm import UserError
from lit_llm.data.mixture import BLOCK, MixedOrder, phases_after, read_phases

NAMES = ["books", "code", "web"]
SIZES = {"books": [7, 5], "code": [11], "web": [3, 3, 3]}


@st.composite
def mixtures(draw: st.DrawFn) -> list[dict]:
    steps = [0, *sorted(draw(st.sets(st.integers(1, 900), max_size=3)))]
    weights = st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 1.0), min_size=1)
    return [{"step": step, "weights": draw(weights)} for step in steps]


@given(mixtures(), st.integers(1, 16), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_position_says_it_all(mixture: list[dict], rows_per_step: int, seed: int) -> None:
    phases = read_phases(mixture, NAMES)
    order = MixedOrder(SIZES, phases, rows_per_step, seed)
    length = 1000 * rows_per_step
    located = [order.locate(position) for position in range(length)]
    used = [0] * len(NAMES)
    for source, index in located:  # each source from its first sample on, through all changes
        assert index == used[source]
        used[source] += 1
    fresh = MixedOrder(SIZES, phases, rows_per_step, seed)
    for position in np.random.default_rng(seed).integers(0, length, 40):
        assert fresh.locate(int(position)) == located[position]
        assert fresh(int(position)) == order(int(position))
    ends = [step * rows_per_step for step, _ in phases[1:]] + [length]
    for (step, shares), end in zip(phases, ends, strict=True):
        begin = step * rows_per_step
        for block in range(begin, end - BLOCK + 1, BLOCK):
            counts = np.bincount(
                [source for source, _ in located[block : block + BLOCK]], minlength=len(NAMES)
            )
            for name, count in zip(NAMES, counts, strict=True):
                assert abs(count - BLOCK * shares.get(name, 0.0)) <= 2


def test_samples_are_of_their_source_and_each_pass_has_all() -> None:
    order = MixedOrder(SIZES, read_phases({"books": 1, "code": 3}, NAMES), 4, seed=1)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for position in range(BLOCK):
        seen[order.locate(position)[0]].append(order(position))
    assert len(seen[0]) == BLOCK // 4
    assert sorted(seen[0][:12]) == sorted(seen[0][12:24]) == list(range(12))
    assert sorted(seen[1][:11]) == sorted(seen[1][11:22]) == list(range(12, 23))
    assert seen[0][:12] != seen[0][12:24]


def test_a_source_keeps_its_order_when_another_comes() -> None:
    def of_books(sizes: dict[str, list[int]]) -> list[int]:
        order = MixedOrder(sizes, read_phases(dict.fromkeys(sizes, 1.0), list(sizes)), 1, seed=0)
        books = list(sizes).index("books")
        return [
            order(p) - int(order.starts[books]) for p in range(99) if order.locate(p)[0] == books
        ]

    few, many = of_books({"books": [7, 5], "code": [11]}), of_books({"art": [4], **SIZES})
    assert few[: len(many)] == many[: len(few)]


def test_a_changed_mixture_holds_from_the_step_of_the_resume() -> None:
    even, odd, late = ({"books": a / 4, "code": 1 - a / 4} for a in (2, 1, 3))
    assert phases_after([(0, even)], 10, [(0, even)]) == [(0, even)]
    assert phases_after([(0, even)], 10, [(0, odd)]) == [(0, even), (10, odd)]
    assert phases_after([(0, even), (10, odd)], 15, [(0, odd)]) == [(0, even), (10, odd)]
    assert phases_after([(0, even), (50, odd)], 10, [(0, even)]) == [(0, even)]
    assert phases_after([(0, even)], 10, [(0, odd), (5, even), (20, late)]) == [
        (0, even),
        (20, late),
    ]
    assert phases_after([(0, even)], 0, [(0, even)]) == [(0, even)]


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ({"book": 1}, "no source book"),
        ({}, "at least 1/4096"),
        ({"books": 0}, "at least 1/4096"),
        ({"books": 1, "code": 1e-6}, "at least 1/4096"),
        ({"books": -1, "code": 2}, "at least 0"),
        ({"books": float("nan")}, "at least 0"),
        ({"books": "much"}, "at least 0"),
        ([], "at least 1/4096"),
        ([{"step": 1, "weights": {"books": 1}}], "begin at 0"),
        (
            [{"step": 0, "weights": {"books": 1}}, {"step": 0, "weights": {"code": 1}}],
            "begin at 0 and ascend",
        ),
        ([{"weights": {"books": 1}}], "entries are"),
        ([{"step": 0, "weights": 3}], "entries are"),
    ],
)
def test_mistakes(mixture: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_phases(mixture, NAMES)  # type: ignore[arg-type]
