"""Files of JSON lines that a run writes: its samples, events and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lit_llm.io.atomic import write_text

Row = TypeVar("Row")


def read_rows(text: str, read: Callable[[Any], Row]) -> tuple[list[Row], int]:
    """What ``read`` makes of each line of ``text``, and how many lines it or JSON could not read.

    A killed process leaves half a line at the end; empty lines are none.
    """
    rows, unreadable = [], 0
    for line in text.split("\n"):  # splitlines would also cut at U+2028 and the like
        if not line.strip():
            continue
        try:
            rows.append(read(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            unreadable += 1
    return rows, unreadable


def an_object(row: Any) -> dict[str, Any]:
    """``row`` if it is a JSON object. Raises TypeError else: for `read_rows`."""
    if not isinstance(row, dict):
        raise TypeError
    return row


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which a resumed run writes again, and a line that a
    kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            whole = False
        kept += [line] if whole else []
    write_text(file, "".join(kept))
