"""What Neptune's client wrote offline, read without the client or its service.

Each process that logs makes a folder ``.neptune/offline/<container>`` of files
``data-<number>.log``; each line there is one operation in JSON, ``{"obj": {"type": ..., "path":
[...], ...}, "version": 1, 2, ..., "at": seconds}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# In Neptune a path is a value or a group, never both: `val_loss` beside `val_loss/code` is written
# with this division sign in one of them, and read back as the slash.
LOOKALIKE = "\u2215"
# The group of string series that keep nan and inf, which the client leaves out of number series.
NOT_FINITE = "not_finite"
# Where NeptuneLogger says under which prefix its metrics are.
PREFIX_PATH = "lit_llm/prefix"


def offline_containers(folder: Path) -> list[Path]:
    """The containers (one for each part of a resumed run) of a run folder or of its ``.neptune``,
    the oldest first."""
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
    """All number series and all single values under ``folder``, a run folder or its ``.neptune``.

    Containers are taken as one run: where two have a point of the same series and step, the later
        one counts. A line
    that a kill cut off is left out.

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
                continue  # JSON, but nothing the client wrote
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
                # A forked child (a data-loader worker) writes what it inherited in the parent's
                # buffer once more.
                if version > last:
                    last = version
                    yield at, operation


def _first_version(file: Path) -> tuple[int, str]:
    number = file.stem.removeprefix("data-")
    return int(number) if number.isdecimal() else 0, file.name
