"""A run of several passes ends when the monitored metric no longer becomes better, and `final/` is
of the best step."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from driver import together
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging

from lit_llm import (
    Checkpoint,
    CSVLogger,
    FSDP2Strategy,
    InstructionDataModule,
    LoRAConfig,
    RunReport,
    SFTModule,
    Transformer,
    UserError,
)
from lit_llm.models.hub.checkpoint import load_model


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 64}
    return random_base(tmp_path_factory.mktemp("base"), None, **shape)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with answers that nobody can know: only learning by heart helps, and soon harms."""
    draw, file = random.Random(0), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["red", "green", "blue", "old", "new", "left", "right", "top", "low", "far"]
    file.write_text(
        "".join(
            json.dumps({"prompt": f"What is {i}?", "completion": " ".join(draw.choices(words, k=6)),
                        "split": "validation" if i % 2 else "train"}) + "\n"
            for i in range(40)
        )
    )  # fmt: skip
    return file


def fit(
    folder: Path,
    base: Path,
    rows: Path,
    callbacks: Any = (),
    ckpt_path: Any = None,
    checkpoint: Checkpoint | None = None,
    **settings: Any,
) -> list[tuple[int, float]]:
    """(step, validation loss) of each validation of a run of forty passes."""
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[checkpoint or Checkpoint(), RunReport(), *callbacks],
        **{key: settings.pop(key) for key in ("devices", "strategy") if key in settings},
    )  # fmt: skip
    data = InstructionDataModule(
        str(rows), cache_dir=str(folder / "cache"), seq_len=64, micro_batch_size=10,
        epochs=settings.pop("epochs", 40.0), min_steps=0, validate_every=8, packing=False,
    )  # fmt: skip
    settings = {"learning_rate": 1e-2, "schedule": "constant", "compile": False, **settings}
    trainer.fit(SFTModule(str(base), **settings), data, ckpt_path=ckpt_path)
    with open(folder / "metrics.csv", newline="") as file:
        return [(int(r["step"]), float(r["val_loss"])) for r in csv.DictReader(file)
                if r["val_loss"]]  # fmt: skip


def final_step(folder: Path) -> int:
    return int(json.loads((folder / "final" / "trainer_state.json").read_text())["global_step"])


def same_weights(checkpoint: Path, final: Path) -> bool:
    """Whether a checkpoint of all weights holds those of a Hugging Face directory."""
    written = Transformer.from_pretrained(final).state_dict()
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    return all(torch.equal(saved[f"model.{name}"], value) for name, value in written.items())


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
    page = (tmp_path / "report.html").read_text()
    after = measured[-1][0] - saved
    assert f"at step {saved:,}, {after} steps before the end" in page


def test_what_keeps_a_run_going(tmp_path: Path, base: Path, rows: Path) -> None:
    """patience: null, a single pass, and an EarlyStopping of the user's own."""
    assert len(fit(tmp_path / "never", base, rows, patience=None)) == 11
    assert len(fit(tmp_path / "once", base, rows, epochs=1.0)) == 2
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


def test_a_run_that_ended_and_is_resumed(
    tmp_path: Path, base: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It trains no further, as after a kill while it wrote final/; with more patience it does."""
    measured = fit(tmp_path, base, rows)
    newest = max((tmp_path / "checkpoints").glob("step-*.ckpt"))
    file = tmp_path / "final" / "model.safetensors"
    written = file.read_bytes()
    shutil.rmtree(tmp_path / "final")
    with caplog.at_level("INFO"):
        assert fit(tmp_path, base, rows, ckpt_path=newest) == measured
    assert "the run had ended: the last 2 validations gave no better val_loss" in caplog.text
    assert file.read_bytes() == written
    assert len(fit(tmp_path, base, rows, ckpt_path=newest, patience=4)) == len(measured) + 2


class Peak(L.Callback):
    """Sets a metric that is highest at ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            value = torch.tensor(1.0 - abs(self.step - trainer.global_step))
            trainer.callback_metrics["eval/task/acc"] = value


def test_another_metric_ends_the_run_too(
    tmp_path: Path, base: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is missing after the first validation, which then does not count."""
    by_metric = Checkpoint(monitor="eval/task/acc", mode="max")
    with caplog.at_level("INFO"):
        measured = fit(tmp_path, base, rows, [Peak(16)], checkpoint=by_metric)
    assert [step for step, _ in measured] == [0, 8, 16, 24, 32] and final_step(tmp_path) == 16
    assert "stopped at step 32: eval/task/acc was highest (1.0000)" in caplog.text


# With embedding and head frozen a new model learns nothing by heart: no loss that rises again.
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, train_modules=("embed", "head"))])
def test_final_is_of_the_best_step(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level("INFO"):
        measured = fit(tmp_path, base, rows, lora=lora)
    best, loss = min(measured, key=lambda row: row[1])
    last = measured[-1][0]
    where = f"step {best}, where val_loss was lowest ({loss:.4f}), {last - best} steps before"
    assert best < last and f"final/: {where} the end; checkpoint.final=last" in caplog.text
    state = json.loads((tmp_path / "final" / "trainer_state.json").read_text())
    assert state == {"global_step": best, "last_step": last, "monitor": "val_loss", "mode": "min",
                     "score": pytest.approx(loss)}  # fmt: skip
    assert f"- Weights: {where} the end." in (tmp_path / "final" / "README.md").read_text()
    if lora is None:
        assert same_weights(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "final")
    else:
        model, _ = load_model(tmp_path / "checkpoints" / "best.ckpt", dtype=torch.float32)
        for name, value in Transformer.from_pretrained(tmp_path / "final").state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name])


def ranks(rank: int, folder: Path, base: Path, rows: Path) -> int:
    by_metric = Checkpoint(monitor="eval/task/acc", mode="max")
    fit(
        folder, base, rows, [Peak(8)], checkpoint=by_metric, epochs=12.0, devices=2,
        strategy=FSDP2Strategy(),
    )  # fmt: skip
    return 0


def test_final_of_the_best_step_of_a_sharded_model(tmp_path: Path, base: Path, rows: Path) -> None:
    out = tmp_path / "out"
    assert together(2, out, ranks, tmp_path / "run", base, rows) == 0, out.read_text()[-3000:]
    assert final_step(tmp_path / "run") == 8
    best, _ = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt", dtype=torch.float32)
    last, _ = load_model(
        max((tmp_path / "run" / "checkpoints").glob("step-*.ckpt")), dtype=torch.float32
    )
    final = Transformer.from_pretrained(tmp_path / "run" / "final").state_dict()
    assert all(torch.equal(value, final[name]) for name, value in best.state_dict().items())
    assert not all(torch.equal(value, final[name]) for name, value in last.state_dict().items())


def test_final_last_and_a_run_that_ended(tmp_path: Path, base: Path, rows: Path) -> None:
    last = fit(tmp_path, base, rows, checkpoint=Checkpoint(final="last"))[-1][0]
    newest = max((tmp_path / "checkpoints").glob("step-*.ckpt"))
    assert final_step(tmp_path) == last and same_weights(newest, tmp_path / "final")
    # The run has ended; asked again, it writes the best.
    fit(tmp_path, base, rows, ckpt_path=newest)
    assert final_step(tmp_path) < last
    assert same_weights(tmp_path / "checkpoints" / "best.ckpt", tmp_path / "final")


def test_final_of_a_single_pass(
    tmp_path: Path, base: Path, rows: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """It is of the last step, unless the best is asked for, or if nothing was the best."""
    settings = {"epochs": 1.0, "learning_rate": 1.0}
    measured = fit(tmp_path / "a", base, rows, validate_first=False, **settings)
    assert final_step(tmp_path / "a") == measured[-1][0] == 2
    unknown = Checkpoint(monitor="eval/x", final="best")
    fit(tmp_path / "b", base, rows, checkpoint=unknown, **settings)
    assert final_step(tmp_path / "b") == 2
    said = [str(warning.message) for warning in recwarn]
    assert any(re.search(r"monitor=eval/x: no such metric is known .*val_loss", s) for s in said)
    assert any("no best checkpoint by checkpoint.monitor=eval/x, so it holds" in s for s in said)


def test_settings_of_final(tmp_path: Path, base: Path, rows: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.final=first: must be true, false, best or"):
        Checkpoint(final="first")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"checkpoint\.final=best: set checkpoint\.monitor"):
        Checkpoint(final="best", monitor=None)
    with pytest.raises(UserError, match=r"final=best: EMAWeightAveraging puts averaged weights"):
        fit(tmp_path, base, rows, [EMAWeightAveraging()], checkpoint=Checkpoint(final="best"))
