"""A finetuning run of several passes ends when the validation loss no longer falls."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lit_llm import (
    Checkpoint,
    CSVLogger,
    InstructionDataModule,
    RunReport,
    SFTModule,
)


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 64}
    return random_base(tmp_path_factory.mktemp("base"), None, **shape)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred questions with answers that nobody can know: only learning by heart helps."""
    draw, file = random.Random(0), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["red", "green", "blue", "old", "new", "left", "right", "top", "low", "far"]
    file.write_text(
        "".join(
            json.dumps({"prompt": f"What is {i}?", "completion": " ".join(draw.choices(words, k=6)),
                        "split": "validation" if i % 10 == 0 else "train"}) + "\n"
            for i in range(200)
        )
    )  # fmt: skip
    return file


def fit(
    folder: Path, base: Path, rows: Path, callbacks: Any = (), **settings: Any
) -> list[tuple[int, float]]:
    """(step, validation loss) of each validation of a run of ten passes."""
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[Checkpoint(), RunReport(), *callbacks],
    )  # fmt: skip
    data = InstructionDataModule(
        str(rows), cache_dir=str(folder / "cache"), seq_len=64, micro_batch_size=10,
        epochs=settings.pop("epochs", 10.0), min_steps=0, validate_every=9, packing=False,
    )  # fmt: skip
    module = SFTModule(str(base), learning_rate=1e-2, compile=False, **settings)
    trainer.fit(module, data, ckpt_path=None)
    with open(folder / "metrics.csv", newline="") as file:
        return [(int(r["step"]), float(r["val_loss"])) for r in csv.DictReader(file)
                if r["val_loss"]]  # fmt: skip


def test_it_ends_two_validations_after_the_lowest_loss(
    tmp_path: Path, base: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        measured = fit(tmp_path, base, rows)
    best = min(range(len(measured)), key=lambda i: measured[i][1])
    assert len(measured) == best + 3 < 20 and measured[best][0] > 0
    assert f"stopped at step {measured[-1][0]}: val_loss was lowest" in caplog.text
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert saved == measured[best][0]
    assert (tmp_path / "final").is_dir()
    page = (tmp_path / "report.html").read_text()
    after = measured[-1][0] - saved
    assert f"at step {saved:,}, {after} steps before the end" in page


def test_what_keeps_a_run_going(tmp_path: Path, base: Path, rows: Path) -> None:
    """patience: null, a single pass, and an EarlyStopping of the user's own."""
    assert len(fit(tmp_path / "never", base, rows, patience=None, epochs=4.0)) == 9
    assert len(fit(tmp_path / "once", base, rows, epochs=1.0)) == 3
    own = EarlyStopping("val_loss", patience=1, check_on_train_epoch_end=False)
    measured = fit(tmp_path / "own", base, rows, [own])
    best = min(range(len(measured)), key=lambda i: measured[i][1])
    assert len(measured) == best + 2


def test_a_resumed_run_counts_on(tmp_path: Path, base: Path, rows: Path) -> None:
    """The callback's count is in the checkpoints."""
    fit(tmp_path, base, rows)
    newest = max((tmp_path / "checkpoints").glob("step-*.ckpt"))
    states = torch.load(newest, weights_only=True)["callbacks"]
    state = next(value for key, value in states.items() if "EarlyStopping" in key)
    assert state["wait_count"] == state["patience"] == 2
