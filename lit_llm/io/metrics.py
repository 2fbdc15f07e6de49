"""Reader and writer of a run's metrics.csv: a header with "step" first, then one row per step."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

NAME = "metrics.csv"


@dataclass
class Metrics:
    """Content of a metrics.csv.

    Attributes:
        columns: column names; empty if the file has no column "step".
        rows: step -> cells, one per column, ordered by step. If a step has several rows, the last
            one counts: a resumed run repeats steps that a killed run wrote.
        unreadable: number of lines left out, including a last line that was cut off.
        header: cells of the first line, whatever they are.
    """

    columns: list[str] = field(default_factory=list)
    rows: dict[int, list[str]] = field(default_factory=dict)
    unreadable: int = 0
    header: list[str] = field(default_factory=list)

    def column(self, name: str) -> dict[int, str]:
        """step -> cell text, for the steps at which ``name`` was measured."""
        if name not in self.columns:
            return {}
        at = self.columns.index(name)
        return {step: row[at].strip() for step, row in self.rows.items() if row[at].strip()}


def parse_metrics(text: str) -> Metrics:
    """Parse the text of a metrics.csv. Broken content never raises an error."""
    # A last line without a line end was cut off, perhaps in the middle of a number.
    whole, _, torn = text.replace("\0", "").rpartition("\n")
    lines = csv.reader(whole.splitlines())
    header = next(lines, [])
    found = Metrics(header=header, unreadable=int(bool(torn)))
    if "step" not in header:
        return found
    found.columns, at = header, header.index("step")
    rows: dict[int, list[str]] = {}
    for row in lines:
        try:
            step = int(float(row[at]))
        except (ValueError, IndexError, OverflowError):
            found.unreadable += bool(row)
            continue
        if len(row) == len(header):
            rows[step] = row
        else:
            found.unreadable += 1
    found.rows = {step: rows[step] for step in sorted(rows)}
    return found


def read_metrics(run: Path) -> Metrics:
    """Read the metrics of a run folder, empty if it has no such file. Raises OSError."""
    file = run / NAME
    return parse_metrics(file.read_text(encoding="utf-8")) if file.is_file() else Metrics()


def to_csv(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as lines of a metrics.csv."""
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
