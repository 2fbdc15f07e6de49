"""Plans of forward passes: every token to score is there once, behind its own context."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.evaluate.scoring.trees import SHORTEST_PREFIX, Plan, Request, Row, plan

LONG = list(range(100, 100 + SHORTEST_PREFIX))


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Requests that share beginnings of any length, some of them duplicates."""
    token = st.integers(0, 2)
    beginnings = draw(st.lists(st.lists(token, max_size=6), min_size=1, max_size=4))
    long = draw(st.lists(st.sampled_from([[], LONG, [*LONG, 1, *LONG]]), min_size=1, max_size=2))
    found = []
    for _ in range(draw(st.integers(1, 14))):
        ids = [
            *draw(st.sampled_from(long)), *draw(st.sampled_from(beginnings)),
            *draw(st.lists(token, min_size=2, max_size=5)),
        ]  # fmt: skip
        found.append(Request(ids, draw(st.integers(1, len(ids) - 1))))
    return found


def contexts(row: Row, before: list[int]) -> list[list[int]]:
    """What each token of a row sees, itself last."""
    return [
        before + [int(row.ids[j]) for j in range(i + 1) if row.until[j] > i]
        for i in range(len(row))
    ]


def scored(found: Plan) -> list[list[tuple[tuple[int, ...], int]]]:
    """Of each request: the context and label of each of its scores, the shortest context first."""
    pairs: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    parts = [(prefix.targets, [prefix.ids[: n + 1].tolist() for n in range(len(prefix.ids))])
             for prefix in found.prefixes]  # fmt: skip
    for row in found.rows:
        before = [] if row.prefix is None else found.prefixes[row.prefix].ids.tolist()
        seen = contexts(row, before)
        assert [len(context) - 1 for context in seen] == row.position.tolist()
        parts.append((row.targets, seen))
    for targets, seen in parts:
        for place, label, owner in zip(targets.places, targets.labels, targets.owners, strict=True):
            pairs.setdefault(int(owner), []).append((tuple(seen[place]), int(label)))
    return [sorted(pairs[number], key=lambda pair: len(pair[0])) for number in sorted(pairs)]


@given(some=requests(), capacity=st.integers(1, 200), with_prefixes=st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_token_is_scored_once_behind_its_own_context(
    some: list[Request], capacity: int, with_prefixes: bool
) -> None:
    found = plan(some, capacity, with_prefixes)
    wanted = [
        [(tuple(ids[:end]), ids[end]) for end in range(len(ids) - count, len(ids))]
        for ids, count in some
    ]
    assert scored(found) == wanted
    longest = SHORTEST_PREFIX if with_prefixes else max(len(ids) - 1 for ids, _ in some)
    assert all(0 < len(row) <= max(capacity, longest) for row in found.rows)
    continued = {row.prefix for row in found.rows}
    for number, prefix in enumerate(found.prefixes):
        assert number in continued or len(prefix.targets.places)


def test_a_question_and_its_choices_are_computed_once() -> None:
    question = list(range(50))
    choices = [[60, 61, 62], [60, 63], [64], [65]]
    found = plan([Request(question + choice, len(choice)) for choice in choices], 1000)
    # The question and the tokens 60 and 61; 62, 63, 64 and 65 are only scored.
    assert found.tokens == 52 and len(found.rows) == 1


def test_a_beginning_that_all_rows_share_is_computed_once() -> None:
    begin = list(range(1000, 1400))
    some = [Request([*begin, number, *range(40), 7], 1) for number in range(30)]
    found = plan(some, 256)
    assert [len(prefix.ids) for prefix in found.prefixes] == [400]
    assert found.tokens == 400 + 30 * 41 and all(row.prefix == 0 for row in found.rows)
    assert plan(some, 256, with_prefixes=False).tokens == 30 * 441


def test_each_subject_keeps_its_own_examples() -> None:
    """A short beginning of all does not hide the long one of each subject."""
    begin = list(range(1000, 1080))
    some = [
        Request([*begin, *[subject] * 300, number, *range(30), 7], 1)
        for subject in (1, 2)
        for number in range(20)
    ]
    found = plan(some, 500)
    assert sorted(len(prefix.ids) for prefix in found.prefixes) == [380, 380]


def test_a_text_longer_than_a_row_is_cut_into_a_cache() -> None:
    (prefix,) = plan([Request(list(range(1001)), 1000)], 128).prefixes
    assert len(prefix.ids) == len(prefix.targets.places) == 1000


@pytest.mark.parametrize("capacity", [1, 64, 4096])
def test_nothing_to_score(capacity: int) -> None:
    assert plan([], capacity) == Plan([], [])
