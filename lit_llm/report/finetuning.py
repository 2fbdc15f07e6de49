"""Sections of a finetuning run's page: examples and their mask, evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lit_llm.io.jsonl import an_object, read_rows

_KINDS = ("instructions", "preferences", "judged")
_COUNTS = ("examples", "tokens", "supervised_tokens", "truncated")


def example_table(card: dict[str, Any]) -> list[dict[str, str]]:
    """One row per split of a data card of examples.

    Columns: examples, tokens, share of tokens that are learnt, and truncated examples.
    """
    splits = card.get("splits")
    if card.get("kind") not in _KINDS or not isinstance(splits, dict):
        return []
    rows = []
    for split, counts in splits.items():
        found = [counts.get(key) if isinstance(counts, dict) else None for key in _COUNTS]
        examples, tokens, supervised, truncated = (n if isinstance(n, int) else 0 for n in found)
        rows.append(
            {
                "split": split,
                "examples": f"{examples:,}",
                "tokens": f"{tokens:,}",
                "supervised": f"{supervised:,}",
                "share": f"{supervised / tokens:.0%}" if tokens else "—",
                "truncated": f"{truncated:,}",
            }
        )
    return rows


def evaluations(folder: Path) -> list[dict[str, str]]:
    """One row per task and metric of ``evaluations.jsonl``: first and last value, with steps."""
    points: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _json_lines(folder / "evaluations.jsonl"):
        if isinstance(row.get("value"), int | float) and isinstance(row.get("step"), int):
            points.setdefault((str(row.get("task")), str(row.get("metric"))), []).append(row)
    rows = []
    for (task, metric), measured in points.items():
        measured.sort(key=lambda row: row["step"])
        first, last = measured[0], measured[-1]
        stderr = last.get("stderr")
        spread = isinstance(stderr, int | float) and math.isfinite(stderr)
        rows.append(
            {
                "task": task,
                "metric": metric,
                "first": f"{first['value']:.4f} (step {first['step']:,})",
                "last": f"{last['value']:.4f}"
                + (f" ± {stderr:.4f}" if spread else "")
                + f" (step {last['step']:,})",
                "change": f"{last['value'] - first['value']:+.4f}" if len(measured) > 1 else "",
            }
        )
    return rows


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        return read_rows(file.read_text(encoding="utf-8"), an_object)[0]
    except (OSError, UnicodeDecodeError):
        return []
