"""What a run folder holds, read with tolerance: the run may still be going, may have been killed while it wrote."""

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
from lit_llm.training.neptune.offline import PREFIX_PATH, offline_containers, read_offline


@dataclass
class Run:
    """A run folder. ``columns`` are float64 (rows,), nan where the file says nan; ``missing`` is True at empty cells.

    ``problems`` are sentences about what was not there or could not be read.
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
        """What ``run.json`` calls it, or its folder."""
        return str(self.info.get("name") or self.folder.resolve().name)

    def measured(self, column: str) -> np.ndarray:
        """Row numbers (n,) at which ``column`` was written; none for a column that is not there."""
        return (
            np.flatnonzero(~self.missing[column])
            if column in self.missing
            else np.array([], dtype=int)
        )

    def finite(self, column: str) -> np.ndarray:
        """The finite values (n,) of ``column`` in order."""
        values = self.columns.get(column, np.array([]))
        return values[np.isfinite(values)]

    def number(self, key: str) -> float | None:
        """``run.json``'s value when it is a finite number, else None."""
        value = self.info.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        try:
            number = float(value)
        except OverflowError:  # JSON's integers have no end
            return None
        return number if math.isfinite(number) else None


def read_run(folder: Path) -> Run:
    """Read everything there is; the metrics from ``metrics.csv``, or where there is none from Neptune's offline data.

    Raises:
        UserError: ``folder`` is no folder or holds neither metrics nor run.json.
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
    """The file's text, bytes that are not UTF-8 replaced; "" and a problem when it cannot be read."""
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
    """Rows in order of step; of rows with the same step the last counts (a resume may repeat what a kill left)."""
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
                f"metrics.csv: column {name} has {int(words.sum()):,} value(s) that are not numbers."
            )
        run.columns[name], run.missing[name] = values, missing | words


def _read_neptune(run: Run) -> None:
    """The columns that metrics.csv would have, from the points of NeptuneLogger that have a step."""
    series, attributes = read_offline(run.folder)
    prefix = f"{attributes.get(PREFIX_PATH, '')}/"
    columns = {
        name.removeprefix(prefix): {step: value for step, value in points if step is not None}
        for name, points in series.items()
    }
    columns.pop(
        "epoch", None
    )  # the Trainer's own counter; a run here is one pass over (seed, step)
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
    """What ``read`` makes of each line of a JSONL file; lines that it cannot read are counted as a problem."""
    if not (run.folder / name).is_file():
        return []  # a run without sample prompts or events is an ordinary one: the page itself says so
    rows, unreadable = read_rows(_read_text(run, name, ""), read)
    if unreadable:
        run.problems.append(f"{name}: {unreadable:,} line(s) that cannot be read were left out.")
    return rows


def _sample(row: Any) -> dict[str, Any]:
    return {**row, "step": int(row["step"]), "text": str(row["text"])}


def _event(row: Any) -> dict[str, Any]:
    return {"step": int(row["step"]), "event": str(row["event"]), "steps": int(row.get("steps", 0))}
