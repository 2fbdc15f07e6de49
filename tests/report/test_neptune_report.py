"""The report of a run whose only logger was Neptune, read without Neptune's client."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lit_llm.cli import main
from lit_llm.report.reading import read_run
from lit_llm.training.neptune.logger import NeptuneLogger


@pytest.mark.parametrize("prefix", ["training", "", "a/b"])
def test_the_same_columns_as_from_metrics_csv(
    fake_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    folder = fake_run(steps=60)
    expected = read_run(folder)
    logger = NeptuneLogger(folder, prefix=prefix)
    with (folder / "metrics.csv").open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            values = {name: float(cell) for name, cell in row.items() if cell and name != "step"}
            expected.columns["train_loss"][i] = values["train_loss"] = (
                np.nan if i == 30 else values["train_loss"]
            )
            logger.log_metrics({**values, "epoch": 0}, step=int(row["step"]))
    logger.log_hyperparams({"lr": 0.1})
    (folder / "metrics.csv").unlink()

    monkeypatch.setitem(sys.modules, "neptune", None)
    run = read_run(folder)
    measured = {name for name in expected.columns if len(expected.measured(name))}
    assert (
        set(run.columns) == measured
        and {"val_bits_per_byte", "val_bits_per_byte/stdlib"} < measured
    )
    for name in measured:
        np.testing.assert_array_equal(run.columns[name], expected.columns[name], err_msg=name)
        np.testing.assert_array_equal(run.missing[name], expected.missing[name], err_msg=name)
    assert (
        "There is no metrics.csv. The plots show what Neptune's client wrote offline."
        in run.problems
    )
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure class="chart"') > 5 and "1 value is not finite" in page


def test_a_folder_with_nothing_else_is_a_run(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.log_metrics({"loss": 2.0})  # no step, so no place on the axis
    run = read_run(tmp_path)
    assert run.columns["loss"].tolist() == [1.0] and run.columns["step"].tolist() == [3.0]


def test_metrics_csv_comes_first(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(steps=20)
    NeptuneLogger(folder).log_metrics({"other": 1.0}, step=3)
    assert "other" not in read_run(folder).columns and len(read_run(folder).columns["step"]) == 20
