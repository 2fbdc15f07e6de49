"""Files of JSON lines that a run writes: samples, events and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lit_llm.io.atomic import write_text

Row = TypeVar("Row")


def read_rows(text: str, read: Callable[[Any], Row]) -> tuple[list[Row], int]:
    """Parse each line of ``text`` with ``read``.

    Empty lines are skipped. A killed process may leave half a line at the end.

    Returns:
        The parsed rows, and the number of lines that JSON or ``read`` could not parse.
    """
    rows, unreadable = [], 0
    for line in text.split("\n"):  # splitlines would also split at U+2028 and similar characters
        if not line.strip():
            continue
        try:
            rows.append(read(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            unreadable += 1
    return rows, unreadable


def an_object(row: Any) -> dict[str, Any]:
    """Return ``row`` if it is a JSON object, else raise TypeError; for use in `read_rows`."""
    if not isinstance(row, dict):
        raise TypeError
    return row


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, and a last line that a kill cut off.

    A resumed run writes the lines of these steps again.
    """
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
