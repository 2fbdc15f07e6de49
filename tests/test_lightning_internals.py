"""What we use of Lightning's inside is there and does what we think: one test a function, with a
real Trainer. A test that fails here after an update names the function to mend."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lit_llm
from lit_llm import lightning_internals as internals

PACKAGE = Path(lit_llm.__file__).parent
INSIDE = "lightning_internals"


class Small(L.LightningModule):
    """One weight, eight rows, batches of two: four micro-batches an epoch."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)
        self.losses = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.losses += 1
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.layer(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(8, 1), batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(2, 1), batch_size=2)  # type: ignore[arg-type]


class Data(L.LightningDataModule):
    """The same rows."""

    train_dataloader, val_dataloader = Small.train_dataloader, Small.val_dataloader  # type: ignore[assignment]


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks),
        enable_model_summary=False, enable_progress_bar=False, **{**defaults, **settings},
    )  # fmt: skip


class At(Callback):
    """Calls a function from a hook, and keeps what it returns."""

    def __init__(self, hook: str, function: Any):
        self.answers: list[Any] = []
        setattr(self, hook, lambda run, module, *args: self.answers.append(function(run, *args)))


class Rows(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []
        self.metrics: list[dict[str, float]] = []
        self.when_shown: list[Any] = []

    name = version = None  # type: ignore[assignment]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.append(step)
        self.metrics.append(metrics)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        run = model.trainer
        self.when_shown.append((run.global_step, internals.loaded_checkpoint(run)))


# ---- a module and its Trainer --------------------------------------------------------------------


def test_trainer_of(tmp_path: Path) -> None:
    module, run = Small(), trainer(tmp_path, fast_dev_run=True)
    assert internals.trainer_of(module) is None and internals.trainer_of(object()) is None
    run.fit(module)
    assert internals.trainer_of(module) is run is module.trainer


def test_constructor_arguments() -> None:
    class Base(L.LightningModule):
        def __init__(self, one: int, two: int = 2):
            super().__init__()
            frame = inspect.currentframe()
            assert frame is not None
            self.found = internals.constructor_arguments(frame)

    class Derived(Base):
        def __init__(self, **kwargs: Any):
            super().__init__(1, **kwargs)

    assert Derived(two=3).found == [{"one": 1, "two": 3}, {"two": 3}]


def test_root_of_calling_trainer(tmp_path: Path) -> None:
    """Lightning asks a logger for its folder, and hands it the settings, from within the Trainer."""
    found: list[str | None] = []

    class Opens(Rows):
        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            found.append(internals.root_of_calling_trainer())

        @property
        def save_dir(self) -> str | None:
            found.append(internals.root_of_calling_trainer())
            return None

    run = trainer(tmp_path, logger=Opens(), limit_val_batches=0)
    assert run.log_dir is None and found == [str(tmp_path)]
    run.fit(Small())
    assert len(found) > 1 and set(found) == {str(tmp_path)}
    assert internals.root_of_calling_trainer() is None


def test_set_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # type: ignore[attr-defined]
    first_only = rank_zero_only(lambda: "called")
    internals.set_rank(1)
    assert first_only() is None
    internals.set_rank(0)
    assert first_only() == "called"


# ---- optimizer steps and their numbers -----------------------------------------------------------


def test_is_accumulating_and_batch_numbers(tmp_path: Path) -> None:
    def look(run: L.Trainer, outputs: Any, batch: Any, batch_idx: int) -> tuple:
        assert internals.batch_of_epoch(run) == batch_idx
        return internals.is_accumulating(run), internals.batch_of_run(run), run.global_step

    looks = At("on_train_batch_end", look)
    run = trainer(tmp_path, looks, max_epochs=2, accumulate_grad_batches=3)
    run.fit(Small())
    # Three micro-batches a step, and the epoch's fourth is a step of its own.
    accumulating = [True, True, False, False] * 2
    assert [answer[0] for answer in looks.answers] == accumulating
    assert [answer[1] for answer in looks.answers] == list(range(8))
    assert looks.answers[-1][2] == 4


class Logs(Small):
    """Logs the number of each batch."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("batch", float(batch_idx))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("undone", "steps"), [(False, [1, 2, 4]), (True, [1, 3])])
def test_number_by_steps_done_and_as_lightning_does(
    tmp_path: Path, undone: bool, steps: list[int]
) -> None:
    rows = Rows()
    run = trainer(tmp_path, logger=rows, log_every_n_steps=2, limit_val_batches=0)
    internals.number_by_steps_done(run, lambda: run.global_step, lambda run: run.global_step == 1)
    if undone:
        internals.number_as_lightning_does(run)
    run.fit(Logs())
    assert rows.steps == steps


def test_a_metric_called_step_keeps_its_meaning(tmp_path: Path) -> None:
    class LogsStep(Small):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("step", 40.0 + batch_idx)
            return super().training_step(batch, batch_idx)

    rows = Rows()
    run = trainer(tmp_path, logger=rows, log_every_n_steps=1, limit_val_batches=0)
    internals.number_by_steps_done(run, lambda: run.global_step, lambda run: False)
    run.fit(LogsStep())
    assert rows.steps == [40, 41, 42, 43]


@pytest.mark.parametrize("counts", [False, True])
def test_count_steps(tmp_path: Path, counts: bool) -> None:
    """The count decides which batches are logged; it is one too high after a validation that a
    resumed run skips."""

    def begin(run: L.Trainer, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            run.fit_loop.epoch_loop._batches_that_stepped += 1
        if counts:
            internals.count_steps(run)

    rows = Rows()
    run = trainer(tmp_path, At("on_train_batch_start", begin), logger=rows, log_every_n_steps=2,
                  limit_val_batches=0)  # fmt: skip
    run.fit(Logs())
    assert [row["batch"] for row in rows.metrics] == ([1, 3] if counts else [0, 2])


def test_log_reduced(tmp_path: Path) -> None:
    class Reduces(Small):
        def on_validation_epoch_end(self) -> None:
            with pytest.MonkeyPatch.context() as patch:  # as if there were other processes
                connector = type(self.trainer._accelerator_connector)
                patch.setattr(connector, "is_distributed", True)
                internals.log_reduced(self, {"mine": torch.tensor(3.0)})

    def metas(run: L.Trainer) -> Any:
        results = run._results
        assert results is not None
        return {metric.meta.name: metric.meta.sync for metric in results.values()}

    looks = At("on_validation_end", metas)
    run = trainer(tmp_path, looks)
    run.fit(Reduces())
    sync = looks.answers[-1]["mine"]
    # Told to reduce, so that nothing is recommended; what reduces is a function that does nothing.
    assert sync.should and sync.rank_zero_only
    assert sync._fn.func == type(sync).no_op
    assert run.callback_metrics["mine"] == 3.0


# ---- how long a fit is, and when it validates ----------------------------------------------------


class OneEpoch(Data):
    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        internals.train_one_epoch(self.trainer)


@pytest.mark.parametrize("epochs", [None, -1, 5])
def test_train_one_epoch(tmp_path: Path, epochs: int | None) -> None:
    run = trainer(tmp_path, max_epochs=epochs, max_steps=99)
    run.fit(Small(), datamodule=OneEpoch())
    assert run.global_step == 4 and run.max_epochs == 1


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"max_epochs": 2}, [False, True]),
        ({"max_epochs": 3, "max_steps": 8}, [False, True]),
        ({"max_epochs": -1, "max_steps": 6}, [False, True]),
    ],
)
def test_ends_with_epoch(tmp_path: Path, settings: dict[str, Any], ends: list[bool]) -> None:
    looks = At("on_train_epoch_end", internals.ends_with_epoch)
    trainer(tmp_path, looks, **settings).fit(Small())
    assert looks.answers == ends


def test_a_stop_ends_an_epoch_only_where_the_trainer_may_stop(tmp_path: Path) -> None:
    def stop(run: L.Trainer, *args: Any) -> None:
        run.should_stop = True

    for least, ends in ((None, [True]), (2, [False, True])):
        looks = At("on_train_epoch_end", internals.ends_with_epoch)
        trainer(
            tmp_path, At("on_train_batch_end", stop), looks, max_epochs=4, min_epochs=least
        ).fit(Small())
        assert looks.answers == ends


@pytest.mark.parametrize(("asks", "least"), [(False, None), (True, None), (True, 2)])
def test_validate_after_this_batch(tmp_path: Path, asks: bool, least: int | None) -> None:
    def last(run: L.Trainer, outputs: Any, batch: Any, batch_idx: int) -> None:
        if asks and batch_idx == 3:
            internals.validate_after_this_batch(run)

    validations = At("on_validation_end", lambda run: run.global_step)
    run = trainer(tmp_path, At("on_train_batch_end", last), validations,
                  min_steps=least, val_check_interval=3, check_val_every_n_epoch=None)  # fmt: skip
    run.fit(Small())
    assert validations.answers == ([3, 4] if asks else [3])
    assert run.global_step == 4


def test_validate_now(tmp_path: Path) -> None:
    class First(Small):
        def on_train_start(self) -> None:
            internals.validate_now(self.trainer)

    rows, validations = Rows(), At("on_validation_end", lambda run: run.global_step)
    run = trainer(tmp_path, validations, logger=rows)
    run.fit(First())
    assert validations.answers == [0, 4] and run.global_step == 4
    assert "val" in rows.metrics[0] and rows.steps[0] == 0


# ---- where a run goes on -------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 2 of 4, saved as `Checkpoint` does: before the third batch."""
    file = tmp_path / "saved.ckpt"

    class Saves(Callback):
        def on_train_batch_start(self, run: L.Trainer, *args: Any) -> None:
            if run.global_step == 2:
                run.save_checkpoint(file)

        def on_save_checkpoint(self, run: L.Trainer, module: Any, checkpoint: Any) -> None:
            internals.end_at_step(checkpoint, run.num_training_batches)

    trainer(tmp_path, Saves()).fit(Small())
    return file


def test_end_at_step(tmp_path: Path, saved: Path) -> None:
    """The run that goes on trains on the third and the fourth batch."""
    seen = At("on_train_batch_start", lambda run, batch, batch_idx: batch_idx)
    module = Small()
    trainer(tmp_path, seen).fit(module, ckpt_path=saved)
    assert seen.answers == [2, 3] and module.losses == 2


@pytest.mark.parametrize(
    ("saved_by", "stop", "more", "expected"),
    [
        # An epoch that max_steps cut short goes on.
        ("on_train_epoch_end", {"max_steps": 2}, {}, [(0, 2), (0, 3)]),
        ("on_train_end", {"max_steps": 2}, {"max_steps": 3}, [(0, 2)]),
        # After a whole one the next begins.
        ("on_train_epoch_end", {}, {"max_epochs": 2}, [(1, 0), (1, 1), (1, 2), (1, 3)]),
        ("on_train_end", {"max_steps": 4}, {"max_steps": 6, "max_epochs": -1}, [(1, 0), (1, 1)]),
    ],
)
def test_end_at_step_where_training_ends(
    tmp_path: Path, saved_by: str, stop: Any, more: Any, expected: list
) -> None:
    file = tmp_path / "end.ckpt"

    class Corrects(Callback):
        def on_save_checkpoint(self, run: L.Trainer, module: Any, checkpoint: Any) -> None:
            internals.end_at_step(checkpoint, run.num_training_batches)

    saves = At(saved_by, lambda run: run.save_checkpoint(file))
    trainer(tmp_path, saves, Corrects(), **stop).fit(Small())
    seen = At("on_train_batch_start", lambda run, batch, batch_idx: (run.current_epoch, batch_idx))
    trainer(tmp_path, seen, **more).fit(Small(), ckpt_path=file)
    assert seen.answers == expected


def test_loaded_checkpoint(tmp_path: Path, saved: Path) -> None:
    found: list[Any] = []

    class Remembers(Data):
        def state_dict(self) -> dict[str, Any]:
            return {"mine": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            assert self.trainer is not None
            found.append((state_dict, internals.loaded_checkpoint(self.trainer)["global_step"]))

    run = trainer(tmp_path, enable_checkpointing=False, max_steps=2)
    run.fit(Small(), datamodule=Remembers())
    assert internals.loaded_checkpoint(run) == {}
    run.save_checkpoint(tmp_path / "data.ckpt")
    rows = Rows()
    again = trainer(tmp_path, max_steps=2, logger=rows)
    again.fit(Small(), datamodule=Remembers(), ckpt_path=tmp_path / "data.ckpt")
    assert found == [({"mine": 1}, 2)]
    # A logger is shown the module while the step is still 0.
    ((step, checkpoint),) = rows.when_shown
    assert step == 0 and checkpoint["global_step"] == 2
    assert internals.loaded_checkpoint(again) == {}


class Placed(Data):
    """Goes on after the checkpoint's step, in an epoch of ``batches`` micro-batches."""

    def __init__(self, accumulation: int, batches: int):
        super().__init__()
        self.accumulation, self.batches = accumulation, batches

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.trainer is not None
        checkpoint = internals.loaded_checkpoint(self.trainer)
        internals.place_in_checkpoint(
            checkpoint, checkpoint["global_step"], self.accumulation, self.batches
        )


def test_place_in_checkpoint(tmp_path: Path) -> None:
    """A run that ended after one step of one micro-batch goes on with steps of two."""
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(Small(), datamodule=Placed(1, 1))
    run.save_checkpoint(tmp_path / "one.ckpt")
    seen = At("on_train_batch_start", lambda run, batch, batch_idx: (run.global_step, batch_idx))
    rows = Rows()
    again = trainer(tmp_path, seen, accumulate_grad_batches=2, logger=rows)
    again.fit(Small(), datamodule=Placed(2, 4), ckpt_path=tmp_path / "one.ckpt")
    assert seen.answers == [(1, 2), (1, 3)] and again.global_step == 2
    # And one that is over stays over.
    over = trainer(tmp_path, seen, limit_train_batches=1)
    over.fit(Small(), datamodule=Placed(1, 1), ckpt_path=tmp_path / "one.ckpt")
    assert len(seen.answers) == 2 and over.global_step == 1


def test_place_in_trainer(tmp_path: Path) -> None:
    class Longer(Data):
        def setup(self, stage: str) -> None:
            assert self.trainer is not None
            if self.trainer.global_step:
                self.trainer.limit_train_batches = 4  # type: ignore[attr-defined]
                internals.place_in_trainer(self.trainer, 1, 4)

    seen = At("on_train_batch_start", lambda run, batch, batch_idx: batch_idx)
    run = trainer(tmp_path, seen, limit_train_batches=1)
    run.fit(Small(), datamodule=Longer())
    run.fit(Small(), datamodule=Longer())
    assert seen.answers == [0, 1, 2, 3] and run.global_step == 4


def test_weight_keys(tmp_path: Path) -> None:
    run = trainer(tmp_path, EMAWeightAveraging())
    run.fit(Small())
    run.save_checkpoint(tmp_path / "averaged.ckpt")
    saved = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    weights = {
        key for key, value in saved.items() if isinstance(value, dict) and "layer.weight" in value
    }
    assert weights == internals.WEIGHT_KEYS


def test_finds_last_checkpoint(tmp_path: Path, saved: Path) -> None:
    class Finds(internals.FindsLastCheckpoint):
        def find_last(self, trainer: L.Trainer) -> Path | None:
            return saved

    class FindsNone(internals.FindsLastCheckpoint):
        def find_last(self, trainer: L.Trainer) -> Path | None:
            return None

    module, callback = Small(), Finds()
    trainer(tmp_path, callback, enable_checkpointing=True).fit(module, ckpt_path="last")
    assert module.losses == 2  # from step 2 on
    module = Small()
    run = trainer(tmp_path, FindsNone(), enable_checkpointing=True)
    with pytest.warns(UserWarning, match="no last checkpoint"):
        run.fit(module, ckpt_path="last")
    assert module.losses == 4


def test_use_folder(tmp_path: Path) -> None:
    class Own(internals.FindsLastCheckpoint):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            self.use_folder(tmp_path / "mine")

    run = trainer(tmp_path, Own(), enable_checkpointing=True)
    run.fit(Small())
    assert Path(run.checkpoint_callback.best_model_path).parent == tmp_path / "mine"  # type: ignore[union-attr]
    # The base class looks for files by the file system that it was given.
    assert {"dirpath", "_fs"} <= vars(ModelCheckpoint(tmp_path)).keys()


# ---- signals -------------------------------------------------------------------------------------


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Notes SIGTERM instead of ending the tests."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("silent", [False, True])
def test_silence_sigterm(tmp_path: Path, heard: list[int], silent: bool) -> None:
    def terminate(run: L.Trainer, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run, module = trainer(tmp_path, At("on_train_batch_start", terminate)), Small()
    if silent:
        internals.silence_sigterm(run)
        run.fit(module)
    else:
        with pytest.raises(SystemExit):
            run.fit(module)
    assert heard == [signal.SIGTERM]  # the handler that was there is called, once
    assert module.losses == (4 if silent else 2) and run.received_sigterm is not silent


def test_restore_sigterm(tmp_path: Path, heard: list[int]) -> None:
    def fail(run: L.Trainer, *args: Any) -> None:
        raise ZeroDivisionError

    run = trainer(tmp_path, At("on_train_batch_start", fail))
    internals.silence_sigterm(run)
    mine = signal.getsignal(signal.SIGTERM)

    def give_back(run: L.Trainer, error: BaseException) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        internals.restore_sigterm(run, [signal.SIGTERM])

    run.callbacks.append(At("on_exception", give_back))  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        run.fit(Small())
    assert mine is not signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # not what the Trainer had found
    # And the Trainer hears of it again.
    run._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)  # type: ignore[arg-type]
    assert run.received_sigterm


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_skip_sigterm_broadcast(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes the loop asks by this method before each micro-batch, and by no other."""
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    asked: list[int] = []
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda tensor, src: asked.append(int(tensor))
    )
    for skips, times in ((False, 4), (True, 0)):
        asked.clear()
        run = trainer(tmp_path, limit_val_batches=0)
        if skips:
            internals.skip_sigterm_broadcast(run)
        run.fit(Small())
        assert len(asked) == times


def test_requeueing_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "run", "PROCID": "0",
                        "LOCALID": "0", "NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = internals.requeueing_slurm(trainer(tmp_path, plugins=[SLURMEnvironment()]))
    assert isinstance(found, SLURMEnvironment) and found.requeue_signal is not None
    quiet = trainer(tmp_path, plugins=[SLURMEnvironment(auto_requeue=False)])
    assert internals.requeueing_slurm(quiet) is None
    assert internals.requeueing_slurm(trainer(tmp_path, plugins=[LightningEnvironment()])) is None

    # While it asks for no requeue the Trainer sets no handler of its own.
    handlers = At("on_train_start", lambda run: signal.getsignal(found.requeue_signal))
    before = signal.getsignal(found.requeue_signal)
    for requeues in (True, False):
        found.auto_requeue = requeues
        trainer(tmp_path, handlers, plugins=[found]).fit(Small())
    assert handlers.answers[0] is not before and handlers.answers[1] is before


# ---- strategies ----------------------------------------------------------------------------------


def test_has_own_format() -> None:
    assert internals.has_own_format(FSDPStrategy(state_dict_type="sharded"))
    assert not internals.has_own_format(FSDPStrategy(state_dict_type="full"))
    assert internals.has_own_format(ModelParallelStrategy())
    assert not internals.has_own_format(ModelParallelStrategy(save_distributed_checkpoint=False))


def test_mesh_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are asked for and set before the mesh is made of them."""
    made: list[tuple[Any, ...]] = []
    module = importlib.import_module(ModelParallelStrategy.__module__)
    monkeypatch.setattr(module, "_setup_device_mesh", lambda *args: made.append(args))
    monkeypatch.setattr(ModelParallelStrategy, "_setup_distributed", lambda self: None)
    strategy = ModelParallelStrategy("auto", 1)
    run = trainer(tmp_path, strategy=strategy)
    strategy.connect(Small())
    assert internals.mesh_sizes(strategy) == ("auto", 1)
    internals.set_data_parallel_size(strategy, 3)
    assert internals.mesh_sizes(strategy) == (3, 1)
    run.strategy.setup_environment()
    assert made[0][:2] == (3, 1)


# ---- the command line ----------------------------------------------------------------------------


def test_cli_hooks(tmp_path: Path, saved: Path) -> None:
    from lightning.pytorch.cli import LightningCLI

    mine = At("on_train_start", lambda run: None)

    class CLI(internals.CLIHooks, LightningCLI):
        def choose_callbacks(self, config: dict[str, Any], callbacks: list) -> list[Callback]:
            assert config["max_epochs"] == 1 and "callbacks" in config
            return [*callbacks, mine]

    settings = {
        "max_epochs": "1", "accelerator": "cpu", "logger": "false", "default_root_dir": tmp_path,
        "enable_checkpointing": "false", "enable_progress_bar": "false", "max_steps": "2",
    }  # fmt: skip
    args = ["fit", f"--ckpt_path={saved}"]
    args += [f"--trainer.{key}={value}" for key, value in settings.items()]
    with pytest.raises(RuntimeError, match="size mismatch"):
        # The checkpoint is of width 1: Lightning would have changed the setting to that.
        CLI(Small, save_config_callback=None, args=[*args, "--model.width=2"])
    cli = CLI(Small, save_config_callback=None, args=[*args, "--model.width=1"])
    assert mine in cli.trainer.callbacks  # type: ignore[attr-defined]


# ---- nothing of it elsewhere ---------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def privates_of(source: str) -> set[str]:
    """Private methods and attributes that a class or a file of Lightning's has."""
    tree = ast.parse(source)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return set(filter(is_private, names))


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names of attributes, and texts that stand for one: of getattr, in vars(...), of a key."""
    for node in ast.walk(tree):
        texts: list[ast.AST] = []
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Subscript):
            texts = [node.slice]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("getattr", "setattr", "hasattr", "delattr", "pop", "get"):
                texts = list(node.args)
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value


def set_by_itself(tree: ast.AST) -> set[str]:
    """Attributes that the classes of a file set on themselves, and functions in it."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def test_no_other_file_uses_lightnings_privates() -> None:
    root = Path(L.__file__).parent / "pytorch"
    theirs = set().union(*(privates_of(file.read_text("utf-8")) for file in root.rglob("*.py")))
    theirs -= vars(nn.Module()).keys() | set(dir(nn.Module))  # torch's, which Lightning uses too
    assert {"_trainer", "_loaded_checkpoint", "_should_accumulate"} <= theirs  # it finds them
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.stem == INSIDE:
            continue
        tree = ast.parse(file.read_text("utf-8"))
        ours = set_by_itself(tree)
        found += [
            f"{file.relative_to(PACKAGE)}:{line}: {name}"
            for line, name in used_names(tree)
            if is_private(name) and name in theirs - ours
        ]
    assert not found


def test_no_class_of_ours_shares_a_private_name_with_its_base_in_lightning() -> None:
    """Neither on purpose, which belongs into lightning_internals, nor by accident."""
    found, seen = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        if "lightning" not in file.read_text("utf-8") or file.stem in ("__main__", INSIDE):
            continue
        for cls in vars(importlib.import_module(name)).values():
            if isinstance(cls, type) and cls.__module__ == name:
                bases = [base for base in cls.__mro__ if base.__module__.startswith("lightning.")]
                theirs = set().union(*(privates_of(inspect.getsource(base)) for base in bases))
                seen += bool(theirs)
                shared = privates_of(inspect.getsource(cls)) & theirs
                found += [f"{name}.{cls.__qualname__}: {private}" for private in sorted(shared)]
    assert seen > 10 and not found
