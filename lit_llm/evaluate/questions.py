"""Questions with what is expected of their answers, from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lit_llm.corpus.reading.rows import json_rows
from lit_llm.errors import UserError
from lit_llm.evaluate.answers import check_expected

Item = TypeVar("Item")


class Question(NamedTuple):
    """A prompt as token ids, its text, and what is expected under a key of `SCORES`."""

    ids: list[int]
    text: str
    key: str
    expected: Any


def read_questions(
    file: Path, prompt_ids: Callable[[list[dict[str, Any]]], list[int]]
) -> list[Question]:
    """Read JSONL of {"prompt": text, or "messages"; and a key of `SCORES`}.

    Args:
        file: the file. "expected" in a row is the former name of "pattern".
        prompt_ids: messages -> token ids of the prompt.

    Raises:
        UserError: a row that cannot be used, with its line.
    """
    questions = []
    for number, row in json_rows(file):
        try:
            if "expected" in row:
                row = {**row, "pattern": row["expected"]}
            key = check_expected(row)
            messages = row.get("messages") or [{"role": "user", "content": row.get("prompt")}]
            ids = prompt_ids(messages)
            text = row.get("prompt") or str(messages[-1].get("content"))
            questions.append(Question(ids, text, key, row[key]))
        except UserError as error:
            raise UserError(f"{file}:{number}: {error}") from None
    return questions


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, evenly spaced: a file may be sorted."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int))
    return [items[place] for place in places]
