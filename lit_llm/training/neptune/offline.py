"""Reads the files that Neptune's client writes offline, without the client or its service.

Each process that logs makes a folder ``.neptune/offline/<container>`` with files
``data-<number>.log``. Each line is one operation in JSON: ``{"obj": {"type": ..., "path": [...],
...}, "version": 1, 2, ..., "at": seconds}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# In Neptune a path is a value or a group, never both. If there are `val_loss` and `val_loss/code`,
# one of them is written with this division sign, which is read back as a slash.
LOOKALIKE = "\u2215"
# The group of string series for nan and inf, which the client drops from number series.
NOT_FINITE = "not_finite"
# The path under which NeptuneLogger stores the prefix of its metrics.
PREFIX_PATH = "lit_llm/prefix"


def offline_containers(folder: Path) -> list[Path]:
    """The containers of a run folder or of its ``.neptune``, the oldest first.

    Each part of a resumed run has its own container.
    """
    data = folder / ".neptune"
    found = {
        path.parent for path in (data if data.is_dir() else folder).glob("offline/*/data-*.log")
    }

    def began(container: Path) -> tuple[float, str]:
        return next((at for at, _ in _operations(container)), math.inf), container.name

    return sorted(found, key=began)


def read_offline(
    folder: Path,
) -> tuple[dict[str, list[tuple[float | None, float]]], dict[str, Any]]:
    """Read all number series and all single values under ``folder``.

    The containers form one run. If two containers have a point of the same series and step, the
    later one is used. A line that a kill cut off is skipped.

    Args:
        folder: a run folder or its ``.neptune``.

    Returns:
        Series: path -> [(step, value), ...], points without a step first, then by step; values may
            be nan or inf.
        Attributes: path -> bool, int, float, str, datetime, or a sorted list of strings (tags).
    """
    series: dict[str, dict[float, float]] = {}
    stepless: dict[str, list[float]] = {}
    attributes: dict[str, Any] = {}

    def add(name: str, points: list[dict[str, Any]]) -> None:
        for point in points:
            step, value = point.get("step"), float(point["value"])
            if step is None:
                stepless.setdefault(name, []).append(value)
            elif math.isfinite(step):
                series.setdefault(name, {})[int(step) if step == int(step) else float(step)] = value

    def apply(operation: dict[str, Any]) -> None:
        kind, parts = operation["type"], operation["path"]
        name = "/".join(parts).replace(LOOKALIKE, "/").rstrip("/")
        if kind in ("AssignFloat", "AssignInt", "AssignBool", "AssignString"):
            attributes[name] = operation["value"]
        elif kind == "AssignDatetime":
            attributes[name] = datetime.fromtimestamp(operation["value"] / 1000, UTC)
        elif kind == "AddStrings":
            attributes[name] = sorted({*attributes.get(name, ()), *operation["values"]})
        elif kind == "RemoveStrings":
            attributes[name] = sorted(set(attributes.get(name, ())).difference(operation["values"]))
        elif kind == "LogFloats":
            add(name, operation["values"])
        elif kind == "LogStrings" and NOT_FINITE in name.split("/"):
            add(
                "/".join(part for part in name.split("/") if part != NOT_FINITE),
                operation["values"],
            )
        elif kind in ("ClearFloatLog", "ClearStringSet", "DeleteAttribute"):
            for store in (series, stepless, attributes):
                store.pop(name, None)

    for container in offline_containers(folder):
        for _, operation in _operations(container):
            try:
                apply(operation)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError):
                continue  # valid JSON that the client did not write
    return {
        name: [
            *((None, value) for value in stepless.get(name, ())),
            *sorted(series.get(name, {}).items()),
        ]
        for name in {**stepless, **series}
    }, attributes


def _operations(container: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """(seconds since the epoch, operation) of each readable line, in order."""
    last = 0
    for file in sorted(container.glob("data-*.log"), key=_first_version):
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    version, at, operation = int(entry["version"]), float(entry["at"]), entry["obj"]
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                    continue
                # A forked child (a data-loader worker) inherits the parent's buffer and writes its
                # operations again. Their versions are not above the last one.
                if version > last:
                    last = version
                    yield at, operation


def _first_version(file: Path) -> tuple[int, str]:
    number = file.stem.removeprefix("data-")
    return int(number) if number.isdecimal() else 0, file.name
