"""Tolerant reader of a run folder, which may belong to a running or killed run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.errors import UserError
from lit_llm.io.jsonl import read_rows
from lit_llm.io.metrics import NAME, parse_metrics
from lit_llm.training.neptune_offline import PREFIX_PATH, offline_containers, read_offline


@dataclass
class Run:
    """Content of a run folder.

    Attributes:
        columns: metric -> float64 (rows,), nan where the file says nan.
        missing: metric -> bool (rows,), True at empty cells.
        problems: sentences about files that are missing or unreadable.
    """

    folder: Path
    info: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    datacard: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name in ``run.json``, or its folder's name."""
        return str(self.info.get("name") or self.folder.resolve().name)

    def measured(self, column: str) -> np.ndarray:
        """Row numbers (n,) at which ``column`` has a value; empty for an unknown column."""
        return (
            np.flatnonzero(~self.missing[column])
            if column in self.missing
            else np.array([], dtype=int)
        )

    def finite(self, column: str) -> np.ndarray:
        """Finite values (n,) of ``column`` in row order."""
        values = self.columns.get(column, np.array([]))
        return values[np.isfinite(values)]

    def number(self, key: str) -> float | None:
        """Value of ``key`` in ``run.json`` if it is a finite number, else None."""
        value = self.info.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        try:
            number = float(value)
        except OverflowError:  # JSON integers have no upper limit
            return None
        return number if math.isfinite(number) else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    The metrics come from ``metrics.csv``, or from Neptune's offline data without that file.

    Raises:
        UserError: ``folder`` is not a folder, or has neither metrics nor run.json.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the folder that `lit_llm fit` wrote")
    run = Run(folder)
    only_neptune = not (folder / "metrics.csv").is_file() and bool(offline_containers(folder))
    if (
        not only_neptune
        and not (folder / "metrics.csv").is_file()
        and not (folder / "run.json").is_file()
    ):
        raise UserError(f"{folder}: not a run folder, it has neither metrics.csv nor run.json")
    run.info = _read_json(run, "run.json", "What the header would say about the run is unknown.")
    run.datacard = _read_json(run, "datacard.json", "The data card is left out.")
    run.config = _read_text(run, "config.yaml", "The configuration is left out.")
    if only_neptune:
        _read_neptune(run)
    else:
        _read_metrics(run)
    run.samples, run.events = (
        _read_lines(run, "samples.jsonl", _sample),
        _read_lines(run, "events.jsonl", _event),
    )
    return run


def _read_text(run: Run, name: str, consequence: str) -> str:
    """Read a file, with invalid UTF-8 replaced. On failure return "" and record a problem."""
    try:
        return (run.folder / name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        what = "There is no" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        run.problems.append(f"{what} {name}. {consequence}")
        return ""


def _read_json(run: Run, name: str, consequence: str) -> dict[str, Any]:
    text = _read_text(run, name, consequence)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    run.problems.append(f"{name} does not hold a JSON object. {consequence}")
    return {}


def _read_metrics(run: Run) -> None:
    """Read metrics.csv into columns ordered by step.

    If a step has several rows, the last one counts: a resumed run repeats steps of a killed run.
    """
    found = parse_metrics(_read_text(run, NAME, "The plots are left out."))
    if not found.columns:
        if found.header:
            run.problems.append("metrics.csv has no column named step. The plots are left out.")
        return
    if found.unreadable:
        run.problems.append(f"metrics.csv: {found.unreadable:,} incomplete line(s) left out.")
    header, ordered = found.columns, list(found.rows.values())
    for i, name in enumerate(header):
        cells = [row[i].strip() for row in ordered]
        values = np.array([_to_float(cell) for cell in cells], dtype=np.float64)
        missing = np.array([not cell for cell in cells], dtype=bool)
        words = (
            np.isnan(values)
            & ~missing
            & np.array([cell.lower().lstrip("+-") != "nan" for cell in cells], dtype=bool)
        )
        if words.any():
            run.problems.append(
                f"metrics.csv: column {name} has {int(words.sum()):,} value(s) that are not "
                f"numbers."
            )
        run.columns[name], run.missing[name] = values, missing | words


def _read_neptune(run: Run) -> None:
    """Build the columns of metrics.csv from NeptuneLogger's offline points that have a step."""
    series, attributes = read_offline(run.folder)
    prefix = f"{attributes.get(PREFIX_PATH, '')}/"
    columns = {
        name.removeprefix(prefix): {step: value for step, value in points if step is not None}
        for name, points in series.items()
    }
    # "epoch" is the Trainer's own counter. A lit_llm run is a single pass over (seed, step).
    columns.pop("epoch", None)
    steps = sorted({step for points in columns.values() for step in points})
    rows = {step: row for row, step in enumerate(steps)}
    for name, points in columns.items():
        values, missing = np.full(len(steps), np.nan), np.ones(len(steps), dtype=bool)
        at = [rows[step] for step in points]
        values[at], missing[at] = list(points.values()), False
        run.columns[name], run.missing[name] = values, missing
    run.columns["step"], run.missing["step"] = (
        np.array(steps, dtype=np.float64),
        np.zeros(len(steps), dtype=bool),
    )
    run.problems.append(
        "There is no metrics.csv. The plots show what Neptune's client wrote offline."
    )


def _to_float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _read_lines(run: Run, name: str, read: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """Parse a JSONL file with ``read``. Lines that cannot be parsed are recorded as a problem."""
    if not (run.folder / name).is_file():
        # Not a problem: many runs have no samples or events, and the page says so itself.
        return []
    rows, unreadable = read_rows(_read_text(run, name, ""), read)
    if unreadable:
        run.problems.append(f"{name}: {unreadable:,} line(s) that cannot be read were left out.")
    return rows


def _sample(row: Any) -> dict[str, Any]:
    return {**row, "step": int(row["step"]), "text": str(row["text"])}


def _event(row: Any) -> dict[str, Any]:
    return {"step": int(row["step"]), "event": str(row["event"]), "steps": int(row.get("steps", 0))}
