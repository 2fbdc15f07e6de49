"""Scores of answers."""

from __future__ import annotations

from typing import Any

import pytest

from lit_llm.errors import UserError
from lit_llm.evaluate.answers import SCORES, check_expected, repeats, rouge_l


@pytest.mark.parametrize(
    ("key", "expected", "right", "wrong"),
    [
        ("exact", "Paris", [" Paris\n", "Paris"], ["paris", "Paris."]),
        ("exact", ["4", "four"], ["four"], ["4 or so"]),
        ("contains", ["cat", "dog"], ["A DOG and a cat"], ["a cat"]),
        ("contains", "道", ["这是道路"], ["路"]),
        ("pattern", r"\b7\b", ["it is 7."], ["77"]),
        ("format", "json", ['{"a": 1}', '```json\n{"a": [1]}\n```'], ["{a: 1}", ""]),
        ("format", "python", ["x = 1", "```python\ndef f():\n    return 1\n```"], ["def f(:"]),
        # What a model in a loop writes: a run must not end because of it.
        ("format", "json", [], ["[" * 5000, '{"a":' * 5000, "1" * 5000]),
        ("format", "python", [], ["-" * 50_000 + "1", "not " * 20_000 + "1", "a" + ".a" * 20_000]),
    ],
)
def test_right_and_wrong(key: str, expected: Any, right: list[str], wrong: list[str]) -> None:
    assert check_expected({"prompt": "?", key: expected}) == key
    assert [SCORES[key](answer, expected) for answer in right] == [1.0] * len(right)
    assert [SCORES[key](answer, expected) for answer in wrong] == [0.0] * len(wrong)


def test_rouge_l_in_any_script() -> None:
    """Three of four words in order: precision 3/4, recall 3/4."""
    assert rouge_l("the cat sat here", "the cat sat there") == pytest.approx(0.75)
    assert rouge_l("Привет, мир", "привет мир!") == 1.0
    assert rouge_l("今天天气好", "今天天气不好") == pytest.approx(2 * 5 / 11)
    assert rouge_l("", "words") == 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "needs exactly one of exact"),
        ({"exact": "a", "pattern": "b"}, "needs exactly one of exact"),
        ({"exact": 4}, "'exact' must be text"),
        ({"contains": []}, "'contains' must be text"),
        ({"pattern": "("}, "is no regular expression"),
        ({"format": "xml"}, "'format' is one of json, python; got 'xml'"),
        ({"rouge_l": ["a"]}, "'rouge_l' must be text"),
    ],
)
def test_what_a_question_expects_is_checked(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        check_expected({"prompt": "?", **row})


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2, 3] * 6, True),
        ([9, 8, *[1, 2, 3] * 6], True),
        ([*[1, 2, 3] * 6, 9], False),
        ([1, 2, 3] * 5, False),
        ([*range(9)] * 3, False),
        ([*range(9)] * 4, True),
        ([5] * 15, False),  # a rule in a table
        ([5] * 16, True),
        ([], False),
    ],
)
def test_loops(ids: list[int], loops: bool) -> None:
    assert repeats(ids) == loops
