"""What people do with a Trainer, Lightning's callbacks and their own subclasses, as Lightning's
manual says."""

from __future__ import annotations

import csv
import inspect
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from safetensors.torch import load_file
from test_examples import TINY, TheirModule, data, trainer
from torch.utils.data import DataLoader

from lit_llm import (
    Checkpoint,
    CSVLogger,
    PretrainDataModule,
    PretrainModule,
    ProgressBar,
    Transformer,
    UserError,
)
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.training.callbacks import checkpoint as callback
from lit_llm.training.callbacks.optimizer_steps import planned_steps

ADAMW: dict[str, Any] = {"optimizer": "adamw", "compile": False}
SMALL = {**TINY, "vocab_size": 20, "max_seq_len": 8}


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def bare_rows(count: int = 16) -> list[dict[str, Any]]:
    samples = torch.randint(0, 20, (count, 9), generator=torch.Generator().manual_seed(0))
    return [
        {"input_ids": s[:-1], "labels": s[1:], "number": torch.tensor(i)}
        for i, s in enumerate(samples)
    ]


# ---- random streams ------------------------------------------------------------------------------


class Notes(PretrainModule):
    """Notes the rows of every batch, and some of the noise drawn while it is trained on."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.numbers: list[list[int]] = []
        self.noise: list[float] = []

    def compute_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        self.numbers.append(batch["number"].tolist())
        self.noise.append(float(torch.rand(())))
        return super().compute_loss(batch)


def test_every_epoch_of_a_users_loader_has_its_own_order_and_noise(tmp_path: Path) -> None:
    L.seed_everything(3)
    module, loader = Notes(SMALL, **ADAMW), DataLoader(bare_rows(), batch_size=4, shuffle=True)
    run = trainer(tmp_path, max_epochs=5, max_steps=20, enable_checkpointing=False)
    run.fit(module, loader)
    epochs = [list(chain(*module.numbers[i : i + 4])) for i in range(0, 20, 4)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert len(set(module.noise)) == 20


def test_noise_is_the_micro_batchs_own_after_a_resume(tmp_path: Path) -> None:
    def fit(folder: str, steps: int, ckpt_path: Path | None = None) -> Notes:
        L.seed_everything(3)
        module = Notes(SMALL, **ADAMW)
        run = trainer(tmp_path / folder, max_epochs=-1, max_steps=steps, callbacks=[Checkpoint()],
                      accumulate_grad_batches=2)  # fmt: skip
        run.fit(module, DataLoader(bare_rows(), batch_size=4), ckpt_path=ckpt_path)
        return module

    whole, first = fit("whole", 6), fit("run", 4)
    torch.rand(7)
    second = fit("run", 6, tmp_path / "run" / "checkpoints" / "step-00000004.ckpt")
    assert first.noise + second.noise == whole.noise


@pytest.mark.parametrize(("epochs", "limit", "steps"), [(3, -1, 6), (3, 5, 5), (-1, 7, 7)])
def test_steps_of_all_epochs_of_a_users_loader_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int, limit: int, steps: int
) -> None:
    """16 rows are two steps an epoch."""
    callbacks = [bar := ProgressBar(seconds=0), checkpoint := Checkpoint()]
    run = trainer(tmp_path, max_epochs=epochs, max_steps=limit, accumulate_grad_batches=2,
                  callbacks=callbacks, log_every_n_steps=1)  # fmt: skip
    run.fit(Notes(SMALL, **ADAMW), DataLoader(bare_rows(), batch_size=4))
    assert run.global_step == steps and planned_steps(run) == steps
    said = capsys.readouterr().err
    assert f"step 0 to {steps}," in said and f"step {steps}/{steps}" in said
    assert checkpoint._interval == 50 and bar._total == steps


def test_a_metric_that_is_not_logged_makes_no_best(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, callbacks=[Checkpoint(monitor="val_los")], limit_val_batches=1)
    with pytest.warns(UserWarning, match=r"monitor=val_los: no such metric is known.*val_loss"):
        run.fit(PretrainModule(TINY, **ADAMW), data(corpus))
    assert run.checkpoint_callback.best_model_path == ""


def test_random_streams_of_others_are_left_alone(tmp_path: Path) -> None:
    drawn: dict[type, list[float]] = {}

    class Draws(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            drawn[cls].append(float(torch.rand(())))

    for cls in (PretrainModule, TheirModule):
        drawn[cls] = []
        module = cls(SMALL, **ADAMW) if cls is PretrainModule else cls(20)
        torch.manual_seed(5)
        run = trainer(tmp_path, max_steps=6, max_epochs=-1, callbacks=[Draws()],
                      enable_checkpointing=False, limit_val_batches=0)  # fmt: skip
        module.configure_model()
        torch.manual_seed(5)
        run.fit(module, DataLoader(bare_rows(), batch_size=4))
    assert drawn[PretrainModule] == drawn[TheirModule]


# ---- numbers of steps ----------------------------------------------------------------------------


def test_lightnings_model_checkpoint_keeps_every_save(tmp_path: Path, corpus: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)
    run = trainer(tmp_path, callbacks=[saves], limit_val_batches=1, logger=CSVLogger(tmp_path),
                  log_every_n_steps=10)  # fmt: skip
    run.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=16))
    assert {f.name for f in (tmp_path / "saved").iterdir()} == {
        f"epoch=0-step={step}.ckpt" for step in (4, 8, 12, 16)
    }
    assert {"step", "epoch"}.isdisjoint(run.callback_metrics)


class LogsToo(PretrainModule):
    """The most ordinary addition."""

    def compute_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        loss = super().compute_loss(batch)
        self.log("mine", loss.detach())
        return loss


class Kept(Logger):
    """Keeps what it is given."""

    name = version = "kept"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name in metrics:
            self.steps.setdefault(name, []).append(step)


def test_metrics_have_the_number_of_steps_done_in_every_logger(
    tmp_path: Path, corpus: Path
) -> None:
    kept = Kept()
    board = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    run = trainer(tmp_path, logger=[kept, CSVLogger(tmp_path), board], log_every_n_steps=2,
                  limit_val_batches=1, callbacks=[Checkpoint()])  # fmt: skip
    run.fit(LogsToo(TINY, **ADAMW), data(corpus, steps=6, validate_every=3))
    assert kept.steps["train_loss"] == kept.steps["mine"] == [1, 2, 4, 6]
    assert kept.steps["val_loss"] == [3, 6] and "step" not in kept.steps
    assert "step" not in run.callback_metrics
    rows = read(tmp_path)
    measured = ("train_loss", "val_loss", "mine")
    assert [(r["step"], *(bool(r[name]) for name in measured)) for r in rows] == [
        ("1", True, False, True), ("2", True, False, True), ("3", False, True, False),
        ("4", True, False, True), ("6", True, True, True),
    ]  # fmt: skip
    assert [r["tokens"] for r in rows] == [str(int(r["step"]) * 128) for r in rows]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train_loss")] == [1, 2, 4, 6]
    assert [e.step for e in events.Scalars("val_loss")] == [3, 6]


def test_evaluation_leaves_metrics_csv_as_training_made_it(tmp_path: Path, corpus: Path) -> None:
    first = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1, limit_val_batches=1,
                    callbacks=[Checkpoint()])  # fmt: skip
    first.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=6))
    before = read(tmp_path)
    assert [row["step"] for row in before] == list("123456")

    def evaluate(verb: str, module: L.LightningModule, **kwargs: Any) -> None:
        settings = {"logger": CSVLogger(tmp_path), "limit_val_batches": 2, "limit_test_batches": 1}
        run = trainer(tmp_path, **settings, enable_autolog_hparams=kwargs.pop("autolog", True))
        getattr(run, verb)(module, data(corpus), verbose=False, **kwargs)

    file = first.checkpoint_callback.last_model_path
    evaluate("test", PretrainModule(TINY, **ADAMW), ckpt_path=file)
    now = read(tmp_path)
    assert [{k: row[k] for k in before[0]} for row in now] == before
    assert [bool(row["test_loss"]) for row in now] == [False] * 5 + [True]  # of that step
    with pytest.warns(UserWarning, match="keeps val_loss=.* of step 6"):
        evaluate("validate", PretrainModule(TINY, **ADAMW), ckpt_path=file)
    evaluate("test", TheirTest(512))
    evaluate("test", TheirTest(512), autolog=False)
    now = [row for row in read(tmp_path) if row["step"] != "0"]
    assert [{k: row[k] for k in before[0]} for row in now] == before
    # And a run that goes on afterwards goes on in the same file.
    logger = CSVLogger(tmp_path)
    more = trainer(tmp_path, logger=logger, log_every_n_steps=1, limit_val_batches=1)
    module = PretrainModule(TINY, **ADAMW)
    more.validate(module, data(corpus), ckpt_path=file, verbose=False)
    more.fit(module, data(corpus, steps=8), ckpt_path=file)
    assert [row["step"] for row in read(tmp_path) if row["train_loss"]] == list("12345678")


class TheirTest(TheirModule):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("accuracy", 0.5, on_step=True, on_epoch=True)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_last_and_best_are_found_as_with_a_model_checkpoint(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, callbacks=[Checkpoint(every_steps=2)], limit_val_batches=1, max_steps=4)
    module = PretrainModule(TINY, **ADAMW)
    run.fit(module, data(corpus, steps=6, validate_every=2))
    saves: Any = run.checkpoint_callback
    folder = (tmp_path / "checkpoints").resolve()
    assert isinstance(saves, ModelCheckpoint) and saves is run.checkpoint_callbacks[0]
    assert saves.last_model_path == str(folder / "step-00000004.ckpt")
    assert saves.best_model_path == str(folder / "best.ckpt") == saves.kth_best_model_path
    assert saves.best_model_score == saves.kth_value == saves.best_score
    assert saves.best_k_models == {saves.best_model_path: saves.best_model_score}
    state = torch.load(saves.last_model_path, weights_only=True)["callbacks"]["Checkpoint"]
    assert state["best_model_path"] == saves.best_model_path
    assert state["last_model_path"] == saves.last_model_path
    # Without a model the best weights are taken, as Lightning says it does.
    for kwargs in (
        {},
        {"ckpt_path": "best"},
        {"ckpt_path": "last"},
        {"ckpt_path": "best", "weights_only": True},
    ):
        tested = run.test(datamodule=data(corpus), verbose=False, **kwargs)
        assert "test_loss" in tested[0]
    # A new process.
    again = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=1)
    seen: list[int] = []

    class Starts(Callback):
        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            seen.append(trainer.global_step)

    again.callbacks.insert(0, Starts())  # type: ignore[attr-defined]
    again.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=6), ckpt_path="last")
    assert (seen, again.global_step) == ([4], 6)
    assert again.checkpoint_callback.best_model_path == str(folder / "best.ckpt")
    with pytest.raises(ValueError, match="hpc"):
        again.fit(PretrainModule(TINY, **ADAMW), data(corpus), ckpt_path="hpc")


def test_without_a_monitor_the_newest_is_the_best(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, callbacks=[Checkpoint(monitor=None)], limit_val_batches=1)
    run.fit(PretrainModule(TINY, **ADAMW), data(corpus))
    saves: Any = run.checkpoint_callback
    assert saves.best_model_path == saves.last_model_path != ""
    assert saves.best_model_score is None
    assert "val_loss" in run.validate(datamodule=data(corpus), ckpt_path="best", verbose=False)[0]


def test_the_best_of_another_run_in_the_folder_is_not_this_ones(
    tmp_path: Path, corpus: Path
) -> None:
    for validations in (1, 0):
        run = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=validations)
        run.fit(PretrainModule(TINY, **ADAMW), data(corpus))
    assert run.checkpoint_callback.best_model_path == ""
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_no_hook_of_model_checkpoint_is_left() -> None:
    hooks = {name for name in vars(ModelCheckpoint) if hasattr(Callback, name)} - {"__init__"}
    ours = {
        n
        for cls in Checkpoint.__mro__[: Checkpoint.__mro__.index(ModelCheckpoint)]
        for n in vars(cls)
    }
    assert {h for h in hooks if not h.startswith("__")} - ours == set()


def test_loggers_are_told_of_checkpoints_on_disk(tmp_path: Path, corpus: Path) -> None:
    told: list[tuple[str, bool]] = []

    class Uploads(Kept):
        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            last = checkpoint_callback.last_model_path
            told.append((Path(last).name, Path(last).exists()))

    run = trainer(tmp_path, callbacks=[Checkpoint(every_steps=3)], logger=Uploads(),
                  limit_val_batches=0)  # fmt: skip
    run.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=6))
    assert told == [("step-00000003.ckpt", True), ("step-00000006.ckpt", True)]


def test_loggers_are_told_of_a_checkpoint_that_is_written_slowly(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bool]] = []
    may_write = threading.Event()

    class Uploads(Kept):
        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            last = checkpoint_callback.last_model_path
            told.append((Path(last).name, Path(last).exists()))

    class Slow(Checkpoint):
        """The first checkpoint reaches the disk when the second one is due."""

        def _save_step(self, trainer: L.Trainer) -> None:
            if trainer.global_step == 6:
                may_write.set()
            super()._save_step(trainer)

    def write(state: Any, target: Path) -> None:
        assert may_write.wait(60)
        real(state, target)

    real = callback.write
    monkeypatch.setattr(callback, "write", write)
    run = trainer(tmp_path, callbacks=[Slow(every_steps=3)], logger=Uploads(), limit_val_batches=0)
    run.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=6))
    assert told == [("step-00000003.ckpt", True), ("step-00000006.ckpt", True)]


def test_a_checkpoint_of_weights_alone_is_refused_in_words(tmp_path: Path, corpus: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "saved", "one", save_weights_only=True)
    trainer(tmp_path, callbacks=[saves]).fit(PretrainModule(TINY, **ADAMW), data(corpus))
    file, again = tmp_path / "saved" / "one.ckpt", trainer(tmp_path)
    with pytest.raises(UserError, match="weights without the optimizer's state"):
        again.fit(PretrainModule(TINY, **ADAMW), data(corpus), ckpt_path=file)
    again = trainer(tmp_path)
    assert again.validate(
        PretrainModule(TINY, **ADAMW), data(corpus), ckpt_path=file, verbose=False
    )


@pytest.mark.parametrize("average", [EMAWeightAveraging, WeightAveraging])
def test_averaged_weights_are_the_model_and_raw_ones_are_trained_on(
    tmp_path: Path, corpus: Path, average: type[WeightAveraging]
) -> None:
    kwargs = {"decay": 0.8} if average is EMAWeightAveraging else {}
    raw: dict[int, torch.Tensor] = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            raw[trainer.global_step] = module.network.embed.weight.detach().clone()

    def fit(folder: str, steps: int, ckpt_path: Any = None) -> tuple[L.Trainer, Any]:
        L.seed_everything(1)
        module = PretrainModule(TINY, **ADAMW, schedule="constant")
        run = trainer(tmp_path / folder, limit_val_batches=1,
                      callbacks=[average(**kwargs), Watch(), Checkpoint()])  # fmt: skip
        run.fit(module, data(corpus, steps=steps), ckpt_path=ckpt_path, weights_only=False)
        return run, module

    run, module = fit("run", 6)
    assert module.config.vocab_size == 512  # the callback asks for the network before `setup`
    saved = torch.load(run.checkpoint_callback.last_model_path, weights_only=True)
    name = "model.embed.weight"
    assert torch.equal(saved["current_model_state"][name], raw[6])
    assert not torch.equal(saved["state_dict"][name], raw[6])
    final = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert torch.equal(final["model.embed_tokens.weight"], saved["state_dict"][name])
    assert torch.equal(module.network.embed.weight, saved["state_dict"][name])
    # Longer, it is the run that was as long from the start.
    longer, _ = fit("run", 9, run.checkpoint_callback.last_model_path)
    after = raw[9]
    whole, _ = fit("whole", 9)
    assert torch.equal(after, raw[9])
    for one in (longer, whole):
        (Path(one.default_root_dir) / "final" / "trainer_state.json").unlink()
    # A run stopped while it wrote its model writes the same one again.
    expected = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    again, _ = fit("run", 9, longer.checkpoint_callback.last_model_path)
    assert again.global_step == 9
    written = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def test_averaging_by_epochs_is_refused(tmp_path: Path, corpus: Path) -> None:
    for module in (PretrainModule(TINY, **ADAMW), TheirModule(512)):
        with pytest.raises(UserError, match="take lightning's EMAWeightAveraging"):
            trainer(tmp_path, callbacks=[StochasticWeightAveraging(1e-2)]).fit(module, data(corpus))
    bare = trainer(tmp_path, callbacks=[StochasticWeightAveraging(1e-2)], max_epochs=4, max_steps=8)
    with pytest.raises(UserError, match="before the network is there"):
        bare.fit(PretrainModule(SMALL, **ADAMW), DataLoader(bare_rows(), batch_size=4))


# ---- subclasses ----------------------------------------------------------------------------------


class OwnSignature(PretrainModule):
    def __init__(self, width: int = 32, note: str = "none"):
        super().__init__({"hidden_size": width, "num_layers": 1, "num_heads": 2}, **ADAMW)
        self.note = note


class PassesOn(PretrainModule):
    def __init__(self, width: int = 32, note: str = "none", **kwargs: Any):
        super().__init__({"hidden_size": width, "num_layers": 1, "num_heads": 2}, **kwargs)
        self.note = note


class Anything(PretrainModule):
    def __init__(self, *args: Any, note: str = "none", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.note = note


class SavesItself(PretrainModule):
    def __init__(self, width: int = 32, note: str = "none"):
        super().__init__({"hidden_size": width, "num_layers": 1, "num_heads": 2}, **ADAMW)
        self.save_hyperparameters()
        self.note = note


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnSignature(16, note="mine"),
        lambda: PassesOn(16, note="mine", **ADAMW),
        lambda: Anything({**TINY, "hidden_size": 16}, note="mine", **ADAMW),
        lambda: SavesItself(16, note="mine"),
    ],
    ids=["own", "kwargs", "args", "saves"],
)
def test_a_subclass_with_its_own_arguments_opens_its_checkpoint(
    tmp_path: Path, corpus: Path, make: Any
) -> None:
    module = make()
    run = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=1)
    source = data(corpus)
    run.fit(module, source)
    file = run.checkpoint_callback.last_model_path
    again = type(module).load_from_checkpoint(file, weights_only=True)
    assert again.note == "mine" and again.config == module.config
    ids = torch.randint(0, 512, (1, 32))
    with torch.no_grad():
        assert torch.equal(again.network.eval()(ids), module.network.eval()(ids))
    # Where no data says how many tokens there are, the checkpoint does.
    samples = [{"input_ids": ids[0, :-1], "labels": ids[0, 1:]}]
    metrics = trainer(tmp_path).validate(
        make(), DataLoader(samples), ckpt_path=file, verbose=False
    )[0]
    assert metrics["val_loss"] > 0
    # The rest of the package reads it too.
    source.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert load_model(file)[0].config == module.config
    assert isinstance(again.network, Transformer)


class HoldsAThing(PretrainModule):
    def __init__(self, thing: Any):
        super().__init__(TINY, **ADAMW)
        self.thing = thing


def test_an_argument_that_is_no_plain_value_does_not_stop_a_resume(
    tmp_path: Path, corpus: Path
) -> None:
    thing = torch.nn.Identity()
    with pytest.warns(UserWarning, match="the checkpoint does not hold thing"):
        trainer(tmp_path, callbacks=[Checkpoint()], max_steps=1).fit(
            HoldsAThing(thing), data(corpus)
        )
    run = trainer(tmp_path, callbacks=[Checkpoint()], max_steps=2)
    run.fit(HoldsAThing(thing), data(corpus), ckpt_path="last")
    assert run.global_step == 2
    file = run.checkpoint_callback.last_model_path
    assert HoldsAThing.load_from_checkpoint(file, thing=thing).config == run.lightning_module.config


class SavesItsSettings(PretrainDataModule):
    def __init__(self, tokens: float = 1e3, global_batch_tokens: int | None = None, **kwargs: Any):
        super().__init__(tokens=tokens, global_batch_tokens=global_batch_tokens, **kwargs)
        self.save_hyperparameters()


def test_a_data_module_that_saves_its_hyperparameters(tmp_path: Path, corpus: Path) -> None:
    settings = {"corpus": str(corpus), "seq_len": 32, "micro_batch_size": 4, "eval_batch_size": 64}
    source = SavesItsSettings(tokens=768, global_batch_tokens=256, **settings)
    run = trainer(tmp_path, logger=TensorBoardLogger(tmp_path), limit_val_batches=1)
    run.fit(PretrainModule(TINY, **ADAMW), source)
    assert run.global_step == 3
    other = PretrainModule(TINY, **ADAMW, tokens=999)
    with pytest.raises(UserError, match=r"model.tokens=999 is not data.tokens=768: leave it out"):
        trainer(tmp_path).fit(other, source)


def test_a_horizon_of_the_modules_own_is_in_its_checkpoint(tmp_path: Path) -> None:
    module = PretrainModule(SMALL, **ADAMW, tokens=32 * 6, global_batch_tokens=32)
    run = trainer(tmp_path, callbacks=[Checkpoint()], max_steps=2, max_epochs=-1)
    run.fit(module, DataLoader(bare_rows(), batch_size=4))
    again = PretrainModule.load_from_checkpoint(run.checkpoint_callback.last_model_path)
    more = trainer(tmp_path, max_steps=4, max_epochs=-1, enable_checkpointing=False)
    more.fit(again, DataLoader(bare_rows(), batch_size=4))
    assert again._horizon_steps() == 6


# ---- one Trainer, several calls ------------------------------------------------------------------


def test_a_trainer_that_is_used_again_goes_on_with_its_module(tmp_path: Path, corpus: Path) -> None:
    L.seed_everything(1)
    module = PretrainModule(TINY, **ADAMW)
    run = trainer(tmp_path, limit_val_batches=1, logger=CSVLogger(tmp_path), log_every_n_steps=1,
                  callbacks=[Checkpoint()])  # fmt: skip
    run.fit(module, data(corpus, steps=4))
    run.fit(module, data(corpus, steps=4))  # nothing is left to do
    assert run.global_step == 4
    with pytest.warns(UserWarning, match="trained the module for 4 steps: it goes on from there"):
        run.fit(module, data(corpus, steps=8))
    assert run.global_step == 8
    whole = trainer(tmp_path / "whole", logger=CSVLogger(tmp_path / "whole"), log_every_n_steps=1,
                    limit_val_batches=1)  # fmt: skip
    whole.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=8))
    assert [r["step"] for r in read(tmp_path) if r["lr"]] == list("12345678")
    assert [r["lr"] for r in read(tmp_path)[4:]] == [r["lr"] for r in read(tmp_path / "whole")[4:]]
    # Other batch sizes are the data's, not the user's.
    run.fit(module, data(corpus, steps=10, micro_batch_size=2, global_batch_tokens=32 * 4))
    assert (run.global_step, run.accumulate_grad_batches) == (10, 2)
    with pytest.raises(UserError, match="has trained another module for 10 steps"):
        run.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=12))
    run.fit(PretrainModule(TINY, **ADAMW), data(corpus, steps=12), ckpt_path="last")
    assert run.global_step == 12


def test_validated_or_loaded_first_a_model_is_still_prepared_for_training(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[bool] = []

    def note(model: Any, settings: Any, trainer: Any, mesh: Any, horizon: Any) -> None:
        prepared.append(trainer is not None and trainer.training)

    monkeypatch.setattr("lit_llm.training.language.prepare", note)
    run = trainer(tmp_path, limit_val_batches=1, callbacks=[Checkpoint()])
    module = PretrainModule(TINY, **ADAMW)
    run.validate(module, data(corpus), verbose=False)
    run.fit(module, data(corpus))
    run.validate(module, data(corpus), verbose=False)
    assert prepared == [False, True]
    loaded = PretrainModule.load_from_checkpoint(run.checkpoint_callback.last_model_path)
    trainer(tmp_path / "more", limit_val_batches=0).fit(loaded, data(corpus))
    assert prepared == [False, True, False, True]
    # Prepared twice, no block is wrapped twice.
    monkeypatch.undo()
    module = PretrainModule(TINY, **ADAMW, activation_checkpointing=1.0)
    run = trainer(tmp_path / "again", limit_val_batches=1, enable_checkpointing=False)
    run.validate(module, data(corpus), verbose=False)
    run.fit(module, data(corpus, steps=2))

    forward = module.network.layers[0].forward
    assert inspect.ismethod(forward.args[0])  # and not another wrapper


# ---- accumulation --------------------------------------------------------------------------------


def test_a_loader_of_ours_under_another_accumulation_is_refused(
    tmp_path: Path, corpus: Path
) -> None:
    source = data(corpus, steps=8, global_batch_tokens=32 * 4 * 4)
    source.prepare_data()
    source.setup("fit")
    fields = {**TINY, "vocab_size": 512, "max_seq_len": 32}
    bare: dict[str, Any] = {"max_steps": 2, "max_epochs": -1, "enable_checkpointing": False}
    with pytest.raises(UserError, match="accumulate_grad_batches=4"):
        trainer(tmp_path, **bare).fit(PretrainModule(fields, **ADAMW), source.train_dataloader())
    run = trainer(tmp_path, **bare, accumulate_grad_batches=4)
    run.fit(PretrainModule(fields, **ADAMW), source.train_dataloader())
    assert run.global_step == 2


def test_a_bare_loader_weighs_every_supervised_token_alike(tmp_path: Path) -> None:
    """Of batches without step_tokens too, where micro-batches have different numbers of labels."""
    rows = bare_rows(16)
    for i, row in enumerate(rows):
        row["labels"] = row["labels"].clone()
        row["labels"][: 7 * (i % 8 < 4)] = -100
    L.seed_everything(1)
    module = PretrainModule(SMALL, optimizer="adamw", schedule="constant", compile=False,
                            warmup=0.0, grad_clip=None)  # fmt: skip
    seen: list[float] = []

    class Sees(Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any
        ) -> None:
            seen.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)

    run = trainer(tmp_path, max_steps=2, max_epochs=1, accumulate_grad_batches=4,
                  callbacks=[Sees()], logger=CSVLogger(tmp_path), log_every_n_steps=1,
                  enable_checkpointing=False)  # fmt: skip
    run.fit(module, DataLoader(rows, batch_size=2))
    L.seed_everything(1)
    reference = PretrainModule(SMALL, compile=False)
    reference.configure_model()
    batch = {k: torch.stack([row[k] for row in rows[:8]]) for k in ("input_ids", "labels")}
    loss = reference.token_losses(batch).sum() / (batch["labels"] != -100).sum()
    first_rows = {k: value[:2] for k, value in batch.items()}
    mean = reference.token_losses(first_rows).sum() / (first_rows["labels"] != -100).sum()
    assert seen[0] == pytest.approx(float(mean), rel=1e-5)  # what others' callbacks see
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    first = read(tmp_path)[0]
    assert float(first["train_loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(first["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
