"""A run's metrics.csv: a header with "step" first, then a row a step."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

NAME = "metrics.csv"


@dataclass
class Metrics:
    """What a metrics.csv holds.

    Attributes:
        columns: names; empty if the file has no column "step".
        rows: step -> cells, one a column, in order of step. Of rows of one step the last counts: a
            resume may repeat what a kill left.
        unreadable: lines left out, a last one that was cut among them.
        header: the first line's cells, whatever they are.
    """

    columns: list[str] = field(default_factory=list)
    rows: dict[int, list[str]] = field(default_factory=dict)
    unreadable: int = 0
    header: list[str] = field(default_factory=list)

    def column(self, name: str) -> dict[int, str]:
        """step -> text of the steps at which ``name`` was measured."""
        if name not in self.columns:
            return {}
        at = self.columns.index(name)
        return {step: row[at].strip() for step, row in self.rows.items() if row[at].strip()}


def parse_metrics(text: str) -> Metrics:
    """The metrics in the text of a file; nothing in it is an error."""
    # A last line without its end was cut off, in the middle of a number or not.
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
    """The metrics of a run folder; none if it has no such file. Raises OSError."""
    file = run / NAME
    return parse_metrics(file.read_text(encoding="utf-8")) if file.is_file() else Metrics()


def to_csv(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a metrics.csv."""
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
