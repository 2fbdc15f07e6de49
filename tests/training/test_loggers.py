"""metrics.csv: one row a step, whatever happens."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm import PretrainModule
from lit_llm.training.callbacks.throughput import ThroughputCallback
from lit_llm.training.loggers import COLUMNS, CSVLogger


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_a_step_share_a_row(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"train_loss": 2.5, "tokens": 2.0**40, "epoch": 0}, step=1)
    logger.log_metrics({"train_loss": 2.25}, step=2)
    logger.log_metrics({"val_loss": 3.0}, step=2)
    first, second = rows(tmp_path)
    assert list(first)[: len(COLUMNS)] == COLUMNS
    assert (first["step"], first["tokens"], first["train_loss"], first["val_loss"]) == (
        "1",
        "1099511627776",
        "2.5",
        "",
    )
    assert (second["train_loss"], second["val_loss"]) == ("2.25", "3.0")


def test_new_columns_are_added_to_old_rows(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"lr": 1.0}, step=1)
    logger.log_metrics({"lr": 2.0}, step=2)
    logger.log_metrics({"mine/accuracy": 0.5}, step=2)
    logger.log_metrics({"lr": 3.0}, step=3)
    assert [(r["step"], r["lr"], r["mine/accuracy"]) for r in rows(tmp_path)] == [
        ("1", "1.0", ""), ("2", "2.0", "0.5"), ("3", "3.0", ""),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), max_size=4))
@settings(max_examples=30, deadline=None)
def test_resuming_after_any_cut_leaves_each_step_once(
    tmp_path_factory, kills: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    resume_at = 0
    for last, cut in kills:  # a part of the run, then a kill that may have torn the file's end off
        logger = CSVLogger(folder)
        for step in range(resume_at + 1, resume_at + last + 1):
            logger.log_metrics({"train_loss": float(step)}, step=step)
            logger.log_metrics({"val_loss": -float(step)}, step=step)
        file = folder / "metrics.csv"
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        torn = min(cut, len(lines[-1]) - 1)
        file.write_bytes(whole[: len(whole) - torn])
        resume_at += last - 1  # the checkpoint is of the step before the torn row
    logger = CSVLogger(folder)
    for step in range(resume_at + 1, 41):
        logger.log_metrics({"train_loss": float(step), "val_loss": -float(step)}, step=step)
    assert [(r["step"], r["train_loss"], r["val_loss"]) for r in rows(folder)] == [
        (str(s), str(float(s)), str(-float(s))) for s in range(1, 41)
    ]


def test_a_new_fit_keeps_no_row_of_an_earlier_one(tmp_path: Path) -> None:
    """It logs steps 1, 4 and 8; the others were another run's."""
    for every, steps in ((1, 6), (4, 8)):
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, log_every_n_steps=every, logger=CSVLogger(tmp_path),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        batch = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
        batch["labels"] = batch["input_ids"]
        loader = torch.utils.data.DataLoader([batch] * 8, batch_size=None)
        shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
        trainer.fit(PretrainModule({**shape, "max_seq_len": 8}, compile=False), loader)
    steps = [row["step"] for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert steps == ["1", "4", "8"]


@pytest.mark.parametrize(("steps", "every"), [(1, 10), (3, 10), (12, 5), (10, 5), (3, 0)])
@pytest.mark.parametrize("by", ["max_steps", "max_epochs"])
def test_the_first_and_the_last_step_are_logged(
    tmp_path: Path, steps: int, every: int, by: str
) -> None:
    """Besides every fifth or tenth: a run of three steps has two rows, not none. 0 is none."""
    batch = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    batch["labels"] = batch["input_ids"]
    loader = torch.utils.data.DataLoader([batch] * (2 * steps), batch_size=None)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    trainer = L.Trainer(
        accelerator="cpu", log_every_n_steps=every, logger=CSVLogger(tmp_path),
        accumulate_grad_batches=2, callbacks=[ThroughputCallback()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        **({"max_steps": steps} if by == "max_steps" else {"max_epochs": 1}),
    )  # fmt: skip
    horizon = {"tokens": 16 * steps, "global_batch_tokens": 16} if by == "max_epochs" else {}
    module = PretrainModule({**shape, "max_seq_len": 8}, compile=False, **horizon)
    trainer.fit(module, loader)
    assert trainer.global_step == steps
    if not every:
        assert not (tmp_path / "metrics.csv").exists()
        return
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    expected = sorted({1, steps, *range(every, steps + 1, every)})
    assert [int(row["step"]) for row in rows] == expected
    for row in rows:
        assert all(row[name] for name in ("train_loss", "lr", "grad_norm", "tokens_per_second")), (
            row
        )


def test_the_first_steps_row_leaves_the_average_after_it_alone(tmp_path: Path) -> None:
    """Step 5's average is of five steps, as it was before step 1 had a row of its own."""
    counted: list[int] = []

    class Counting(ThroughputCallback):
        def _restart(self) -> None:
            counted.append(getattr(self, "_tokens", 0))
            super()._restart()

    batch = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    batch["labels"] = batch["input_ids"]
    loader = torch.utils.data.DataLoader([batch] * 12, batch_size=None)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=12, log_every_n_steps=5, logger=CSVLogger(tmp_path),
        callbacks=[Counting()], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    trainer.fit(PretrainModule({**shape, "max_seq_len": 8}, compile=False), loader)
    assert counted == [0, 40, 40]


def test_a_copy_in_another_process_goes_on(tmp_path: Path) -> None:
    """ddp_spawn pickles the Trainer with its loggers, before a fit and after one."""
    logger = CSVLogger(tmp_path)
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(logger))
        copy.log_metrics({"train_loss": 1.0}, step=3)
        assert (tmp_path / "metrics.csv").read_text().count("\n3,") == 1
        logger.log_graph(torch.nn.Linear(1, 1))  # the Trainer does so at each start
