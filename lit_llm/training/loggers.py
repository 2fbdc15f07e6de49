"""CSVLogger: one growing metrics.csv a run, a row a step, which a resumed run continues."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

COLUMNS = ["step", "tokens", "train_loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm", "tokens_per_second",
           "mfu", "data_wait", "memory_gb"]  # fmt: skip


class CSVLogger(Logger):
    """Writes ``metrics.csv``: the columns of `COLUMNS`, then others as they appear; empty where not measured.

    All metrics of a step share its row, whenever they arrive. Rows reach the file at once (a killed process loses
    none). On the first write to a file that is there already, rows of that step and later ones are dropped: a resumed
    run repeats them.

    Args:
        save_dir: folder of the file.
        name: file name.
    """

    def __init__(self, save_dir: str | Path, name: str = "metrics.csv"):
        super().__init__()
        self.file = Path(save_dir) / name
        self._columns = list(COLUMNS)
        self._row: dict[str, Any] = {}
        self._row_start: int | None = (
            None  # where the current row begins in the file; None before the first write
        )

    @property
    def name(self) -> str:
        """Nothing to add to the folder."""
        return ""

    @property
    def version(self) -> str:
        """Nothing to add to the folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the run folder's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add ``metrics`` to the row of ``step``."""
        if step is None:
            raise ValueError("metrics.csv needs a step")
        step = int(step)
        # The Trainer adds its own epoch counter; a run here is one pass over (seed, step).
        metrics = {k: v for k, v in metrics.items() if k not in ("epoch", "step")}
        if not metrics:
            return
        if self._row_start is None:
            self._open(step)
        if self._row.get("step") != step:
            self._row = {"step": step}
            self._row_start = self.file.stat().st_size
        self._row |= metrics
        new = [key for key in self._row if key not in self._columns]
        if new:
            self._columns += new
            self._rewrite_header(len(new))
        self._write_row()

    def _open(self, step: int) -> None:
        """Take over the file as far as it goes before ``step``, or start it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        if self.file.exists():
            with open(self.file, newline="", encoding="utf-8") as file:
                lines = list(csv.reader(file))
            if lines and lines[0][:1] == ["step"]:
                self._columns = lines[0]
                rows = [
                    r
                    for r in lines[1:]
                    if len(r) == len(self._columns) and r[0].isdigit() and int(r[0]) < step
                ]
        self._replace([self._columns, *rows])

    def _rewrite_header(self, added: int) -> None:
        with open(self.file, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        rows = [r for r in rows[1:] if r[0] != str(self._row["step"])]
        self._replace([self._columns, *(r + [""] * added for r in rows)])
        self._row_start = self.file.stat().st_size

    def _replace(self, rows: list[list[str]]) -> None:
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(_to_csv(rows), encoding="utf-8")
        part.replace(self.file)
        self._row_start = self.file.stat().st_size

    def _write_row(self) -> None:
        line = _to_csv(
            [[_text(column, self._row.get(column)) for column in self._columns]]
        ).encode()
        assert self._row_start is not None
        with open(self.file, "rb+") as file:
            file.seek(self._row_start)
            file.write(line)
            file.truncate()


def _to_csv(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if column in ("step", "tokens") else repr(float(value))
