"""Scores of a written answer against what a question expects, each in [0, 1]."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from lit_llm.errors import UserError
from lit_llm.settings.checks import check_expression

_WORDS = re.compile(
    # A letter of Chinese, Japanese or Thai is a word of its own: these scripts have no spaces.
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|"
    r"(?:(?![\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])\w)+"
)


class _Words:
    """A tokenizer of ``rouge_score``, whose own one drops every letter but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.casefold())


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (aclanthology.org/W04-1013)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def _exact(answer: str, expected: str | list[str]) -> float:
    """Whether the answer is one of the expected texts, without the white space around it."""
    accepted = [expected] if isinstance(expected, str) else expected
    return float(answer.strip() in [text.strip() for text in accepted])


def _contains(answer: str, expected: str | list[str]) -> float:
    """Whether all expected texts occur in the answer, without regard to letter case."""
    needed = [expected] if isinstance(expected, str) else expected
    return float(all(text.casefold() in answer.casefold() for text in needed))


def _pattern(answer: str, expected: str) -> float:
    return float(re.search(expected, answer, re.IGNORECASE) is not None)


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):  # a model in a loop writes brackets without end
        return False
    return True


def _is_python(answer: str) -> bool:
    try:
        ast.parse(answer)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested without end
        return False
    return True


_FORMATS: dict[str, Callable[[str], bool]] = {"json": _is_json, "python": _is_python}


def _format(answer: str, expected: str) -> float:
    """Whether the answer, without the marks of a code block, parses."""
    block = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", answer, re.DOTALL)
    return float(_FORMATS[expected](block[1] if block else answer))


SCORES: dict[str, Callable[[str, Any], float]] = {
    "exact": _exact,
    "contains": _contains,
    "pattern": _pattern,
    "rouge_l": rouge_l,
    "format": _format,
}
"""Key of a question's row -> score of an answer, given the value under the key."""


def check_expected(row: dict[str, Any]) -> str:
    """Check what a question expects, and return its key in `SCORES`.

    Raises:
        UserError: no key of `SCORES`, several, or a value that the score does not take.
    """
    keys = [key for key in SCORES if row.get(key) is not None]
    if len(keys) != 1:
        raise UserError(f"needs exactly one of {', '.join(SCORES)}; it has {keys or 'none'}")
    key, value = keys[0], row[keys[0]]
    texts = value if isinstance(value, list) and key in ("exact", "contains") else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        several = " or a list of texts" if key in ("exact", "contains") else ""
        raise UserError(f"{key!r} must be text{several}")
    if key == "format" and value not in _FORMATS:
        raise UserError(f"'format' is one of {', '.join(_FORMATS)}; got {value!r}")
    if key == "pattern":
        check_expression(value, "'pattern'")
    return key


def repeats(ids: list[int]) -> bool:
    """Whether an answer ends in a loop: a run of tokens four times or more, 16 tokens at least.

    Shorter loops occur in good answers, such as the rule of a table.
    """
    for length in range(1, len(ids) // 4 + 1):
        whole = max(4 * length, 16)
        end = ids[-whole:]
        if len(end) == whole and end[length:] == end[:-length]:
            return True
    return False
