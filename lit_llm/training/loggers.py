"""CSVLogger: writes metrics.csv with one row per step; a resumed run continues the file."""

from __future__ import annotations

import csv
import weakref
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lit_llm.io.atomic import write_text
from lit_llm.io.metrics import to_csv
from lit_llm.lightning_internals import loaded_checkpoint, trainer_of

COLUMNS = ["step", "tokens", "train_loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm",
           "tokens_per_second", "mfu", "data_wait", "memory_gb"]  # fmt: skip


def _first_step(trainer: Any) -> int | None:
    """The step from which a fit continues: 0 for a new run, None if it is not known.

    Lightning passes the module to the loggers before it restores the step, so the step is read from
    the checkpoint. Strategies that shard have not loaded the checkpoint at that time.
    """
    if trainer is None or trainer.strategy.restore_checkpoint_after_setup:
        return None
    return int(loaded_checkpoint(trainer).get("global_step", trainer.global_step))


class CSVLogger(Logger):
    """Writes the metrics of a run to ``metrics.csv``.

    The first columns are those of `COLUMNS`; other columns follow in the order in which they
    appear. A cell is empty if the metric was not measured.

    All metrics of a step share one row, no matter when they arrive. Each row is written to the file
    at once, so a killed process loses no row. If the file already exists, the first write of a fit
    removes the rows of that step and of later steps, because a resumed run repeats them. An
    evaluation outside of fit removes nothing. It fills empty cells; if its value differs from a
    value in the file, it keeps the value in the file and prints a warning.

    Args:
        save_dir: folder of the file.
        name: file name.
    """

    def __init__(self, save_dir: str | Path, name: str = "metrics.csv"):
        super().__init__()
        self.file = Path(save_dir) / name
        self._columns = list(COLUMNS)
        self._row: dict[str, Any] = {}  # the last row
        self._row_start: int | None = None  # its byte offset in the file; None before it is opened
        self._file_is_of_this_fit = False
        self._resume_step: int | None = None
        self._module: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # ddp_spawn pickles the Trainer with its loggers; a weak reference cannot be pickled.
        return {**self.__dict__, "_module": None}

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
        """Do nothing: config.yaml in the run folder has the hyperparameters."""

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Remember the module, which knows the Trainer. Lightning calls this at each start."""
        self._module = weakref.ref(model)
        if self._is_fitting(0):
            self._file_is_of_this_fit = False
            self._resume_step = _first_step(trainer_of(model))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add ``metrics`` to the row of ``step``."""
        if step is None:
            raise ValueError("metrics.csv needs a step")
        step = int(step)
        # The Trainer adds its epoch counter. It says nothing here: the samples of a run depend on
        # seed and step alone.
        metrics = {k: v for k, v in metrics.items() if k not in ("epoch", "step")}
        if not metrics:
            return
        fitting = self._is_fitting(step)
        if self._row_start is None or (fitting and not self._file_is_of_this_fit):
            # This fit repeats the steps after the one it resumes from. Older rows of these steps
            # belong to another run or to the repeated part of this one.
            before = step if self._resume_step is None else min(step, self._resume_step + 1)
            self._open(before=before if fitting else None)
            self._file_is_of_this_fit = fitting
        last = int(self._row.get("step", -1))
        if step < last:
            self._change_earlier(step, metrics, fitting)
            return
        if step > last:
            self._row, self._row_start = {"step": step}, self.file.stat().st_size
        self._row = self._merged(self._row, metrics, fitting)
        # A new column changes the header and every row; otherwise only the last row is written.
        if self._add_columns(self._row):
            rows = self._rows()
            self._replace([*(rows if step > last else rows[:-1]), self._row_texts()])
        else:
            self._write_row()

    def _is_fitting(self, step: int) -> bool:
        """Whether a fit is running; without a known Trainer, whether ``step`` is above 0."""
        trainer = None if self._module is None else trainer_of(self._module())
        return step > 0 if trainer is None else trainer.state.fn == "fit"

    def _merged(self, row: dict[str, Any], new: dict[str, Any], fitting: bool) -> dict[str, Any]:
        """``row`` with ``new`` values; an evaluation outside of fit overwrites no value."""
        kept = {
            name: row[name]
            for name, value in new.items()
            if not fitting and name in row and float(row[name]) != float(value)
        }
        for name, value in kept.items():
            rank_zero_warn(
                f"{self.file} keeps {name}={value} of step {row['step']}; "
                f"evaluated now: {float(new[name])}"
            )
        return {**row, **new, **kept}

    def _open(self, before: int | None) -> None:
        """Open the file and keep its rows of steps below ``before``; None keeps all rows.

        A file that does not exist is created.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        if self.file.exists():
            with open(self.file, newline="", encoding="utf-8") as file:
                lines = list(csv.reader(file))
            if lines and lines[0][:1] == ["step"]:
                self._columns = lines[0]
                # A row that a kill cut off, or that is no row of metrics, is dropped.
                rows = [
                    r
                    for r in lines[1:]
                    if len(r) == len(self._columns)
                    and r[0].isdigit()
                    and (before is None or int(r[0]) < before)
                ]
        self._replace(rows)

    def _change_earlier(self, step: int, metrics: dict[str, Any], fitting: bool) -> None:
        """Add ``metrics`` to the row of a ``step`` that is not the last row."""
        rows = {int(row[0]): row for row in self._rows()}
        earlier = dict(zip(self._columns, rows.get(step, [str(step)]), strict=False))
        merged = self._merged({k: v for k, v in earlier.items() if v}, metrics, fitting)
        self._add_columns(merged)
        rows[step] = [_text(column, merged.get(column)) for column in self._columns]
        self._replace([rows[number] for number in sorted(rows)])

    def _rows(self) -> list[list[str]]:
        with open(self.file, newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]

    def _add_columns(self, row: dict[str, Any]) -> bool:
        new = [name for name in row if name not in self._columns]
        self._columns += new
        return bool(new)

    def _replace(self, rows: list[list[str]]) -> None:
        """Write the whole file again. The last of ``rows`` becomes the current row."""
        rows = [row + [""] * (len(self._columns) - len(row)) for row in rows]
        write_text(self.file, to_csv([self._columns, *rows]))
        last = rows[-1] if rows else []
        self._row = {k: v for k, v in zip(self._columns, last, strict=False) if v}
        self._row_start = self.file.stat().st_size - (len(to_csv([last]).encode()) if last else 0)

    def _row_texts(self) -> list[str]:
        return [_text(column, self._row.get(column)) for column in self._columns]

    def _write_row(self) -> None:
        line = to_csv([self._row_texts()]).encode()
        assert self._row_start is not None
        with open(self.file, "rb+") as file:
            file.seek(self._row_start)
            file.write(line)
            file.truncate()


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if column in ("step", "tokens") else repr(float(value))
