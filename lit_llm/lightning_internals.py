"""All uses of Lightning's private attributes and undocumented behaviour.

No other file of the package uses them. Each function says what it does, why the public API is not
enough, and where Lightning's own code is. Paths are those of ``lightning/pytorch`` in 2.6.x;
numbers are issues and pull requests of github.com/Lightning-AI/pytorch-lightning.
tests/test_lightning_internals.py tests each function with a real Trainer, and fails if another
Lightning version renames or changes something that is used here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.core.mixins import HyperparametersMixin
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# ---- a module and its Trainer --------------------------------------------------------------------


def trainer_of(module: Any) -> L.Trainer | None:
    """The Trainer that ``module`` is attached to; None for a module without a Trainer.

    Modules are also used alone, and then the public ``module.trainer`` raises a RuntimeError
    (#13638). Lightning: ``core/module.py``, ``LightningModule._trainer``.
    """
    return getattr(module, "_trainer", None)


def constructor_arguments(frame: FrameType) -> list[dict[str, Any]]:
    """The arguments of each ``__init__`` of a module under construction, the subclass's last.

    ``save_hyperparameters`` merges them into one dict, which does not show what the subclass itself
    was given. ``load_from_checkpoint`` then passes an argument twice (#2550 is such a case).
    Lightning: ``utilities/parsing.py``, ``collect_init_args``, which is not documented.

    Args:
        frame: the frame of the innermost ``__init__``.
    """
    return collect_init_args(frame, [], classes=(HyperparametersMixin,))


def root_of_calling_trainer() -> str | None:
    """``default_root_dir`` of the calling Trainer; None without a Trainer.

    A Trainer opens its loggers before it passes them any object that refers to it. So it is
    searched in the frames of the callers, as local variable ``self`` or ``trainer``. Lightning:
    ``trainer/trainer.py`` and ``trainer/call.py``.
    """
    frame = inspect.currentframe()
    while frame is not None:
        for name in ("trainer", "self"):
            if isinstance(found := frame.f_locals.get(name), L.Trainer):
                return found.default_root_dir
        frame = frame.f_back
    return None


def set_rank(rank: int) -> None:
    """Set this process's rank, which decides about messages and files of the first process only.

    Lightning reads the rank from the environment when it is imported. At that time lit_llm's
    launcher has not set it yet (#6364 is the same problem in another launcher). Lightning:
    ``utilities/rank_zero.py``, the attribute ``rank_zero_only.rank``.
    """
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


# ---- optimizer steps and their numbers -----------------------------------------------------------


def is_accumulating(trainer: L.Trainer) -> bool:
    """Whether the optimizer step continues after the current micro-batch.

    There is no public attribute for this. The last batch of an epoch ends a step early (#21808),
    except with strategies that accumulate gradients themselves. Lightning: ``loops/fit_loop.py``,
    ``_FitLoop._should_accumulate``.
    """
    return trainer.fit_loop._should_accumulate()


def batch_of_epoch(trainer: L.Trainer) -> int:
    """Number of the current micro-batch in the epoch, from 0.

    Hooks get it as an argument, but the logger connector does not. Lightning:
    ``loops/training_epoch_loop.py``, ``_TrainingEpochLoop.batch_idx``; the loops are private since
    Lightning 2.0.
    """
    return trainer.fit_loop.epoch_loop.batch_idx


def batch_of_run(trainer: L.Trainer) -> int:
    """Number of the current micro-batch over all epochs, from 0; a resumed run continues the count.

    The ``batch_idx`` of hooks starts at 0 in each epoch. Lightning: ``loops/fit_loop.py``,
    ``_FitLoop.total_batch_idx``.
    """
    return trainer.fit_loop.total_batch_idx


def count_steps(trainer: L.Trainer) -> None:
    """Set the Trainer's count of steps, which decides what is logged, to the optimizer's count.

    Call it before the first micro-batch of a step. The Trainer counts a validation that it skips at
    resume as a step (#13467 restores the count, #13752 reports negative counts). Lightning:
    ``loops/training_epoch_loop.py``, ``_TrainingEpochLoop._batches_that_stepped``.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def number_by_steps_done(
    trainer: L.Trainer,
    steps_done: Callable[[], int],
    logs_too: Callable[[L.Trainer], bool],
) -> None:
    """Log a module's metrics under the number of completed optimizer steps, as in ``metrics.csv``.

    Metrics are also logged at the steps for which ``logs_too`` returns True. Lightning counts a
    step after it has logged it, so its numbers start at 0, and with ``log_every_n_steps`` above 1
    it never logs the first step (#4170, #8384). A metric called "step" would set the number too,
    but callbacks also see that metric: ModelCheckpoint uses it in file names. Lightning:
    ``trainer/connectors/logger_connector/logger_connector.py``, ``log_metrics`` and
    ``update_train_step_metrics``.
    """
    connector: Any = trainer._logger_connector
    connector.log_metrics = partial(_log_metrics, connector, steps_done)
    connector.update_train_step_metrics = partial(_update_train_step_metrics, connector, logs_too)


def number_as_lightning_does(trainer: L.Trainer) -> None:
    """Undo `number_by_steps_done`, so that the same Trainer can be used with another module."""
    for name in ("log_metrics", "update_train_step_metrics"):
        vars(trainer._logger_connector).pop(name, None)


def _update_train_step_metrics(connector: Any, logs_too: Callable[[L.Trainer], bool]) -> None:
    """Log as Lightning does, and also at the steps for which ``logs_too`` returns True."""
    type(connector).update_train_step_metrics(connector)
    trainer = connector.trainer
    if is_accumulating(trainer) or trainer.fast_dev_run:
        return
    if not connector.should_update_logs and logs_too(trainer):
        connector.log_metrics(connector.metrics["log"])


def _log_metrics(
    connector: Any,
    steps_done: Callable[[], int],
    metrics: dict[str, Any],
    step: int | None = None,
) -> None:
    # A user's own metric with the name "step" keeps its meaning.
    if step is None and "step" not in metrics:
        step = steps_done()
    type(connector).log_metrics(connector, metrics, step=step)


def log_reduced(module: L.LightningModule, values: dict[str, Any]) -> None:
    """Log values that are already equal on all processes.

    With both flags the Trainer does not reduce the values again, and prints no advice to do so. The
    documentation describes only each flag alone. Lightning:
    ``trainer/connectors/logger_connector/result.py``, ``_Sync``.
    """
    module.log_dict(values, sync_dist=True, rank_zero_only=True)


# ---- how long a fit is, and when it validates ----------------------------------------------------


def train_one_epoch(trainer: L.Trainer) -> None:
    """Set the length of the fit that is being set up to one epoch, whatever the Trainer's default.

    ``trainer.max_epochs`` has no setter (#11547), and the user makes the Trainer, not lit_llm.
    Lightning: ``loops/fit_loop.py``, ``_FitLoop.max_epochs``, which ``trainer/trainer.py`` fills in
    before it calls ``setup``.
    """
    trainer.fit_loop.max_epochs = 1


def ends_with_epoch(trainer: L.Trainer) -> bool:
    """Whether training ends with the epoch that has just ended; for ``on_train_epoch_end``.

    Lightning decides this right after that hook, and has no public attribute for the answer.
    Lightning: ``loops/fit_loop.py``, ``_FitLoop.done``, ``_can_stop_early`` and ``epoch_progress``.
    """
    loop: Any = trainer.fit_loop
    stopped = trainer.should_stop and loop._can_stop_early
    epochs, steps = loop.max_epochs, trainer.max_steps
    last_epoch = epochs not in (None, -1) and loop.epoch_progress.current.processed >= epochs
    return bool(stopped or last_epoch or 0 <= steps <= trainer.global_step)


def validate_after_this_batch(trainer: L.Trainer) -> None:
    """Make the Trainer validate before its interval is over, and then stop.

    Call it in ``on_train_batch_end`` of the last batch. With ``val_check_interval`` there is no
    other way to validate at the very end (#15897). ``should_stop`` is public, but it is not
    documented that it causes a validation. A Trainer with ``min_steps`` also has ``min_epochs`` of
    1: without a change it would stop only at the end of the epoch, without a validation. Lightning:
    ``loops/training_epoch_loop.py``, ``_should_check_val_fx``; ``loops/utilities.py``,
    ``_parse_loop_limits``.
    """
    loop = trainer.fit_loop
    loop.min_epochs = min(loop.min_epochs or 0, trainer.current_epoch)
    trainer.should_stop = True


def validate_now(trainer: L.Trainer) -> None:
    """Run the validation of a fit before the first batch; for ``on_train_start``.

    ``trainer.validate`` inside a fit breaks the state of the fit, and the sanity check is not
    logged (#20985). Lightning: ``loops/training_epoch_loop.py``, ``on_advance_end`` does the same
    three things between two batches.
    """
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


# ---- where a run goes on -------------------------------------------------------------------------


WEIGHT_KEYS = frozenset({"state_dict", "current_model_state"})
"""Keys of weights in a checkpoint.

The second is of Lightning's WeightAveraging, and is not documented. Lightning:
``callbacks/weight_averaging.py``, ``on_save_checkpoint``.
"""


def loaded_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """The checkpoint that ``trainer`` is restoring; {} without one, and after it is restored.

    Lightning passes a data module only its own part, and the step is in another part. It also
    passes the module to the loggers (``log_graph``) before it restores the step. Lightning:
    ``trainer/connectors/checkpoint_connector.py``, ``_CheckpointConnector._loaded_checkpoint``.
    """
    return trainer._checkpoint_connector._loaded_checkpoint or {}


def place(fit_loop: dict[str, Any], step: int, accumulation: int, batches: int) -> None:
    """Change the saved state of the fit loop so that the run continues after ``step``.

    Lightning saves the number of completed micro-batches, and whether the epoch was over. Both
    depend on accumulation and length at the time of saving, which may have changed. The step does
    not depend on them. Lightning's values are also wrong in several cases (#18060, #19367, #19617,
    #19815). Lightning: ``loops/progress.py``, and ``state_dict`` in ``loops/loop.py``.

    Args:
        fit_loop: ``trainer.fit_loop.state_dict()``, or a checkpoint's ``["loops"]["fit_loop"]``.
        step: completed optimizer steps.
        accumulation: micro-batches of an optimizer step in the current run.
        batches: micro-batches of the current run, which ends after them.
    """
    done, over = step * accumulation, int(step * accumulation >= batches)
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = bool(over)
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, done))
    for counts in fit_loop["epoch_progress"].values():
        counts.update(ready=1, started=1, processed=over, completed=over)
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step


def place_in_checkpoint(
    checkpoint: dict[str, Any], step: int, accumulation: int, batches: int
) -> None:
    """`place`, in a checkpoint that is about to be restored."""
    place(checkpoint["loops"]["fit_loop"], step, accumulation, batches)


def place_in_trainer(trainer: L.Trainer, accumulation: int, batches: int) -> None:
    """`place`, in a Trainer that has already trained and continues after its step.

    Without it, a second ``fit`` of a Trainer starts the epoch again (#11426). Lightning:
    ``loops/loop.py``, ``state_dict`` and ``load_state_dict`` of a loop; "combined_loader" in
    ``loops/fit_loop.py``.
    """
    state = trainer.fit_loop.state_dict()
    state["state_dict"].pop("combined_loader", None)  # state of the previous fit's loaders
    place(state, trainer.global_step, accumulation, batches)
    trainer.fit_loop.load_state_dict(state)


def end_at_step(checkpoint: dict[str, Any], batches: float) -> None:
    """Set the saved loop counters to the end of an optimizer step.

    It is for a checkpoint that is saved before the next micro-batch begins. In the checkpoint the
    batch that was just fetched has not started. An epoch that ``max_steps`` ended early is not
    over: it continues when the run is resumed with more steps (#19617). After a whole epoch the
    counters are those of the next epoch. If they said that the old epoch is over, Lightning would
    train on one more micro-batch of it. Lightning: ``loops/progress.py``.

    Args:
        checkpoint: the checkpoint, changed in place.
        batches: ``trainer.num_training_batches``, micro-batches of an epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for count in ("total", "current"):
        progress[count]["ready"] = progress[count]["started"] = progress[count]["completed"]
    over = progress["current"]["completed"] >= batches
    progress["is_last_batch"] = False
    if over:
        progress["current"] = dict.fromkeys(progress["current"], 0)
    for epochs in loops["epoch_progress"].values():
        done = epochs["started"] - (not over)
        epochs.update(ready=done + 1, processed=done, completed=done)


class FindsLastCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose subclass finds the file for ``ckpt_path="last"``.

    Lightning asks only instances of ModelCheckpoint, through a private method, before it calls any
    hook (#14907). Lightning: ``callbacks/model_checkpoint.py``, ``_find_last_checkpoints``, which
    ``trainer/connectors/checkpoint_connector.py`` calls.
    """

    def find_last(self, trainer: L.Trainer) -> Path | None:
        """The file for ``ckpt_path="last"``; None if there is none."""
        raise NotImplementedError

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        found = self.find_last(trainer)
        return set() if found is None else {str(found)}

    def use_folder(self, folder: Path) -> None:
        """Set ``dirpath`` to ``folder``, as ModelCheckpoint's own setup does.

        There is no public setter. ``_fs`` is the file system that methods of the base class use.
        Lightning: ``callbacks/model_checkpoint.py``, ``__init_ckpt_dir``.
        """
        self.dirpath = os.path.realpath(folder)
        self._fs = get_filesystem(self.dirpath)


# ---- signals -------------------------------------------------------------------------------------


def silence_sigterm(trainer: L.Trainer) -> None:
    """Disable the Trainer's own handling of SIGTERM.

    The Trainer combines its own handler with the handler that it finds, which is lit_llm's. Its own
    handler would end the run with status 0 and without a save (#19916). With several processes it
    would also broadcast inside the handler (#20806, #20825). No setting disables it. Lightning:
    ``trainer/connectors/signal_connector.py``, ``_SignalConnector._sigterm_notifier_fn``.
    """
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = _nothing


def restore_sigterm(trainer: L.Trainer, numbers: Iterable[int]) -> None:
    """Undo `silence_sigterm`, and keep the Trainer from restoring the handlers of ``numbers``.

    After an exception the Trainer would restore the handlers that it found, which are lit_llm's.
    Lightning: ``trainer/connectors/signal_connector.py``, ``_original_handlers``.
    """
    connector: Any = trainer._signal_connector
    vars(connector).pop("_sigterm_notifier_fn", None)
    for number in numbers:
        connector._original_handlers.pop(number, None)


def skip_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Disable the Trainer's exchange of SIGTERM between processes before every micro-batch.

    The Trainer broadcasts over the device whether the first process got the signal, and waits for
    the result: one synchronisation per micro-batch (#21487; #21640 would make it rarer). Lightning:
    ``loops/training_epoch_loop.py``, ``_broadcast_sigterm_tensor``.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing


def requeueing_slurm(trainer: L.Trainer) -> SLURMEnvironment | None:
    """The SLURM environment if the Trainer would requeue its job; else None.

    Lightning saves inside the signal handler (#21406). Only strategies for several processes have a
    public ``cluster_environment``. Lightning: ``trainer/connectors/signal_connector.py`` reads the
    same ``trainer._accelerator_connector.cluster_environment``.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment
    return None


def _nothing(*_: Any) -> None:
    pass


# ---- strategies ----------------------------------------------------------------------------------


def has_own_format(strategy: Strategy) -> bool:
    """Whether ``strategy`` writes checkpoint folders of torch or DeepSpeed without `CheckpointIO`.

    The setting is an argument of the constructors, and is kept in private attributes (#20205 asks
    for a public interface). Lightning: ``strategies/model_parallel.py``,
    ``_save_distributed_checkpoint``; ``strategies/fsdp.py``, ``_state_dict_type``.
    """
    if isinstance(strategy, ModelParallelStrategy):
        return strategy._save_distributed_checkpoint
    if isinstance(strategy, FSDPStrategy):
        return strategy._state_dict_type == "sharded"
    return isinstance(strategy, DeepSpeedStrategy)


def mesh_sizes(strategy: ModelParallelStrategy) -> tuple[Any, Any]:
    """Data-parallel and tensor-parallel size of the mesh, each an int or "auto".

    See `set_data_parallel_size`.
    """
    return strategy._data_parallel_size, strategy._tensor_parallel_size


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Replace "auto" by ``size``, before the device mesh is created.

    For "auto" Lightning takes the number of nodes (#19878): eight GPUs of one machine would all be
    tensor-parallel. The number of processes is known only in ``setup_environment``. Lightning:
    ``strategies/model_parallel.py``, ``_data_parallel_size``.
    """
    strategy._data_parallel_size = size


# ---- the command line ----------------------------------------------------------------------------


class CLIHooks:
    """A mixin with hooks that `LightningCLI` does not offer publicly.

    A class must list it before `LightningCLI` among its bases. The mixin is not a subclass of
    `LightningCLI`, because ``lightning.pytorch.cli`` takes a second to import and only ``fit``
    needs it. Lightning: ``cli.py``.
    """

    def choose_callbacks(self, config: dict[str, Any], callbacks: list[Callback]) -> list[Callback]:
        """The callbacks that the Trainer gets in addition to those in ``config``; for subclasses.

        The public ``instantiate_trainer`` gets neither ``callbacks`` nor the instances in
        ``config``. Lightning: ``LightningCLI._instantiate_trainer``.

        Args:
            config: the Trainer's arguments.
            callbacks: the callbacks that have their own section on the command line.
        """
        return callbacks

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        chosen = self.choose_callbacks(config, callbacks)
        return super()._instantiate_trainer(config, chosen)  # type: ignore[misc]

    def _parse_ckpt_path(self) -> None:
        """Do nothing.

        Lightning would silently replace settings of the config by those of the checkpoint (#21455,
        #21408). Lightning: ``LightningCLI._parse_ckpt_path``.
        """
