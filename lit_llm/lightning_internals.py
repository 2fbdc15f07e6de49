"""All that lit_llm uses of Lightning without Lightning promising it: private attributes, and
behaviour that no manual describes.

No other file of the package touches either. Each function says what it does, why the public API is
not enough, and where Lightning's own code is; paths are those of ``lightning/pytorch`` in 2.6.x,
numbers are issues and pull requests of github.com/Lightning-AI/pytorch-lightning.
tests/test_lightning_internals.py has a test of each with a real Trainer, which fails when another
Lightning renames or changes what is used here.
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
    """The Trainer that ``module`` is attached to; None for a module without one.

    The public ``module.trainer`` raises a RuntimeError where there is none (#13638), and modules
    are also used alone. Lightning: ``core/module.py``, ``LightningModule._trainer``.
    """
    return getattr(module, "_trainer", None)


def constructor_arguments(frame: FrameType) -> list[dict[str, Any]]:
    """The arguments of every ``__init__`` by which a module is being made, the subclass's last.

    Args:
        frame: of the innermost one.

    ``save_hyperparameters`` merges them to one dict, in which nobody can tell what the subclass
    itself was given. ``load_from_checkpoint`` then hands an argument over twice (#2550 is such a
    case). Lightning: ``utilities/parsing.py``, ``collect_init_args``, which is in no manual.
    """
    return collect_init_args(frame, [], classes=(HyperparametersMixin,))


def root_of_calling_trainer() -> str | None:
    """``default_root_dir`` of the Trainer whose code is calling; None without one.

    A Trainer opens its loggers before it hands them anything that knows it: it is found among the
    callers, as the local variable ``self`` or ``trainer``. Lightning: ``trainer/trainer.py`` and
    ``trainer/call.py``.
    """
    frame = inspect.currentframe()
    while frame is not None:
        for name in ("trainer", "self"):
            if isinstance(found := frame.f_locals.get(name), L.Trainer):
                return found.default_root_dir
        frame = frame.f_back
    return None


def set_rank(rank: int) -> None:
    """Have messages and files of "the first process only" follow ``rank``.

    Lightning reads the rank from the environment while it is imported, when our launcher has not
    settled it yet (#6364 is the same in another launcher). Lightning: ``utilities/rank_zero.py``,
    the attribute ``rank_zero_only.rank``.
    """
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


# ---- optimizer steps and their numbers -----------------------------------------------------------


def is_accumulating(trainer: L.Trainer) -> bool:
    """Whether the optimizer step goes on after the micro-batch at hand.

    Nothing public says so: an epoch's last batch ends a step early (#21808), and strategies that
    accumulate themselves do not. Lightning: ``loops/fit_loop.py``, ``_FitLoop._should_accumulate``.
    """
    return trainer.fit_loop._should_accumulate()


def batch_of_epoch(trainer: L.Trainer) -> int:
    """Number of the micro-batch at hand within the epoch, from 0.

    Hooks get it as an argument, but a logger's connector does not. Lightning:
    ``loops/training_epoch_loop.py``, ``_TrainingEpochLoop.batch_idx``; the loops are private since
    Lightning 2.0.
    """
    return trainer.fit_loop.epoch_loop.batch_idx


def batch_of_run(trainer: L.Trainer) -> int:
    """Number of the micro-batch at hand over all epochs, from 0; a resumed run counts on.

    The ``batch_idx`` that hooks get begins anew with each epoch. Lightning: ``loops/fit_loop.py``,
    ``_FitLoop.total_batch_idx``.
    """
    return trainer.fit_loop.total_batch_idx


def count_steps(trainer: L.Trainer) -> None:
    """Have the Trainer's own count of steps, by which it decides what to log, agree with the
    optimizer's. Call it before the first micro-batch of a step.

    It counts a validation that it skips when it resumes as a step (#13467 restores the count,
    #13752 tells of negative ones). Lightning: ``loops/training_epoch_loop.py``,
    ``_TrainingEpochLoop._batches_that_stepped``.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def number_by_steps_done(
    trainer: L.Trainer,
    steps_done: Callable[[], int],
    logs_too: Callable[[L.Trainer], bool],
) -> None:
    """Have the loggers get a module's metrics under the number of optimizer steps done, as
    ``metrics.csv`` counts; also at steps that ``logs_too`` asks for.

    Lightning counts a step after it has logged it, so its numbers begin at 0, and with
    ``log_every_n_steps`` above 1 it never logs the first one (#4170, #8384). A metric called "step"
    would set the number too, but callbacks see that metric as well: ModelCheckpoint takes file
    names from it. Lightning: ``trainer/connectors/logger_connector/logger_connector.py``,
    ``log_metrics`` and ``update_train_step_metrics``.
    """
    connector: Any = trainer._logger_connector
    connector.log_metrics = partial(_log_metrics, connector, steps_done)
    connector.update_train_step_metrics = partial(_update_train_step_metrics, connector, logs_too)


def number_as_lightning_does(trainer: L.Trainer) -> None:
    """Undo `number_by_steps_done`, for another module under the same Trainer."""
    for name in ("log_metrics", "update_train_step_metrics"):
        vars(trainer._logger_connector).pop(name, None)


def _update_train_step_metrics(connector: Any, logs_too: Callable[[L.Trainer], bool]) -> None:
    """As Lightning does it, and at the steps that ``logs_too`` asks for, whatever their numbers."""
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
    if step is None and "step" not in metrics:  # a user's own metric of that name keeps its meaning
        step = steps_done()
    type(connector).log_metrics(connector, metrics, step=step)


def log_reduced(module: L.LightningModule, values: dict[str, Any]) -> None:
    """Log what is the same on all processes already.

    With both flags the Trainer neither reduces the values once more nor recommends that it should;
    the manual describes each flag alone. Lightning:
    ``trainer/connectors/logger_connector/result.py``, ``_Sync``.
    """
    module.log_dict(values, sync_dist=True, rank_zero_only=True)


# ---- how long a fit is, and when it validates ----------------------------------------------------


def train_one_epoch(trainer: L.Trainer) -> None:
    """Make the fit that is being set up one epoch long, whatever the Trainer's default.

    ``trainer.max_epochs`` cannot be set, and a new Trainer is not ours to make (#11547). Lightning:
    ``loops/fit_loop.py``, ``_FitLoop.max_epochs``, which ``trainer/trainer.py`` fills in before it
    calls ``setup``.
    """
    trainer.fit_loop.max_epochs = 1


def ends_with_epoch(trainer: L.Trainer) -> bool:
    """Whether training ends with the epoch that is just over; for ``on_train_epoch_end``.

    What Lightning asks itself right after that hook, with nothing public that says the answer:
    ``loops/fit_loop.py``, ``_FitLoop.done``, ``_can_stop_early`` and ``epoch_progress``.
    """
    loop: Any = trainer.fit_loop
    stopped = trainer.should_stop and loop._can_stop_early
    epochs, steps = loop.max_epochs, trainer.max_steps
    last_epoch = epochs not in (None, -1) and loop.epoch_progress.current.processed >= epochs
    return bool(stopped or last_epoch or 0 <= steps <= trainer.global_step)


def validate_after_this_batch(trainer: L.Trainer) -> None:
    """Have the Trainer validate, though its interval is not over, and end; for
    ``on_train_batch_end`` of the last batch.

    With ``val_check_interval`` there is no other way to validate at the very end (#15897).
    ``should_stop`` is public; that it validates is not written down. A Trainer with ``min_steps``
    has 1 for ``min_epochs`` too, and would not stop before the epoch is over, when it validates no
    more. Lightning: ``loops/training_epoch_loop.py``, ``_should_check_val_fx``;
    ``loops/utilities.py``, ``_parse_loop_limits``.
    """
    loop = trainer.fit_loop
    loop.min_epochs = min(loop.min_epochs or 0, trainer.current_epoch)
    trainer.should_stop = True


def validate_now(trainer: L.Trainer) -> None:
    """Run the validation of a fit, as between two batches; for ``on_train_start``.

    ``trainer.validate`` within a fit breaks its state, and the sanity check is not logged (#20985).
    Lightning: ``loops/training_epoch_loop.py``, ``on_advance_end`` does the same three things.
    """
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


# ---- where a run goes on -------------------------------------------------------------------------


WEIGHT_KEYS = frozenset({"state_dict", "current_model_state"})
"""Keys of weights in a checkpoint; the second is of Lightning's WeightAveraging, which names it in
no manual: ``callbacks/weight_averaging.py``, ``on_save_checkpoint``."""


def loaded_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """The checkpoint that ``trainer`` is restoring from; {} without one, and once it is restored.

    Lightning hands a data module its own part alone, while the step is in another; and it gives the
    loggers the module (``log_graph``) before it has restored the step. Lightning:
    ``trainer/connectors/checkpoint_connector.py``, ``_CheckpointConnector._loaded_checkpoint``.
    """
    return trainer._checkpoint_connector._loaded_checkpoint or {}


def place(fit_loop: dict[str, Any], step: int, accumulation: int, batches: int) -> None:
    """Change the saved state of Lightning's fit loop so that the run goes on after optimizer step
    ``step``.

    Lightning saves how many micro-batches were done and whether the epoch was over. Both depend on
    accumulation and length at the time of saving, which may be others now. The step does not. What
    it saves is also wrong in several cases (#18060, #19367, #19617, #19815). Lightning:
    ``loops/progress.py``, and ``state_dict`` in ``loops/loop.py``.

    Args:
        fit_loop: ``trainer.fit_loop.state_dict()``, or a checkpoint's ``["loops"]["fit_loop"]``.
        step: optimizer steps done.
        accumulation: micro-batches of an optimizer step, now.
        batches: micro-batches of the run, now: it is over once they are done.
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
    """`place`, in a Trainer that has trained already and goes on after its step.

    A second ``fit`` of a Trainer begins the epoch anew (#11426). Lightning: ``loops/loop.py``,
    ``state_dict`` and ``load_state_dict`` of a loop; "combined_loader" in ``loops/fit_loop.py``.
    """
    state = trainer.fit_loop.state_dict()
    state["state_dict"].pop("combined_loader", None)  # of another fit's loaders
    place(state, trainer.global_step, accumulation, batches)
    trainer.fit_loop.load_state_dict(state)


def end_at_step(checkpoint: dict[str, Any], batches: float) -> None:
    """Make the saved loop counters those of the end of an optimizer step, in a checkpoint that is
    saved before the next micro-batch begins.

    The batch just fetched has not begun as far as the checkpoint goes, and an epoch that
    ``max_steps`` cut short is not over: it goes on when the run is resumed with more steps
    (#19617). After a whole epoch the next one is about to begin; Lightning, told that the old one
    is over, would train on one more micro-batch of it. Lightning: ``loops/progress.py``.

    Args:
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
    """A `ModelCheckpoint` whose subclass says which file ``ckpt_path="last"`` means.

    Lightning asks instances of ModelCheckpoint alone, by a private method, before any hook is
    called (#14907). Lightning: ``callbacks/model_checkpoint.py``, ``_find_last_checkpoints``, which
    ``trainer/connectors/checkpoint_connector.py`` calls.
    """

    def find_last(self, trainer: L.Trainer) -> Path | None:
        """The file; None if there is none."""
        raise NotImplementedError

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        found = self.find_last(trainer)
        return set() if found is None else {str(found)}

    def use_folder(self, folder: Path) -> None:
        """Make ``folder`` the ``dirpath``, as ModelCheckpoint's own set-up would.

        It has no public setter; ``_fs`` is the file system that methods of the base class look
        into. Lightning: ``callbacks/model_checkpoint.py``, ``__init_ckpt_dir``.
        """
        self.dirpath = os.path.realpath(folder)
        self._fs = get_filesystem(self.dirpath)


# ---- signals -------------------------------------------------------------------------------------


def silence_sigterm(trainer: L.Trainer) -> None:
    """Have the Trainer's own answer to SIGTERM do nothing.

    The Trainer composes a handler of its own with the one it finds, ours. Its own would end the run
    unsaved with status 0 (#19916) and, of several processes, broadcast from within the handler
    (#20806, #20825). No setting turns it off. Lightning:
    ``trainer/connectors/signal_connector.py``, ``_SignalConnector._sigterm_notifier_fn``.
    """
    connector: Any = trainer._signal_connector
    connector._sigterm_notifier_fn = _nothing


def restore_sigterm(trainer: L.Trainer, numbers: Iterable[int]) -> None:
    """Undo `silence_sigterm`; of the signals ``numbers`` have the Trainer put nothing back.

    After an exception the Trainer has yet to put back the handlers that it found: ours. Lightning:
    ``trainer/connectors/signal_connector.py``, ``_original_handlers``.
    """
    connector: Any = trainer._signal_connector
    vars(connector).pop("_sigterm_notifier_fn", None)
    for number in numbers:
        connector._original_handlers.pop(number, None)


def skip_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Have several processes not ask each other for SIGTERM before every micro-batch.

    The Trainer asks the device whether the first process got one, and waits for the answer: a
    synchronisation a micro-batch (#21487; #21640 would make it rarer). Lightning:
    ``loops/training_epoch_loop.py``, ``_broadcast_sigterm_tensor``.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing


def requeueing_slurm(trainer: L.Trainer) -> SLURMEnvironment | None:
    """The SLURM environment that would have the Trainer requeue its job; None elsewhere.

    Lightning saves within the handler of the signal (#21406). Only strategies of several processes
    have a public ``cluster_environment``. Lightning: ``trainer/connectors/signal_connector.py``
    reads the same ``trainer._accelerator_connector.cluster_environment``.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment
    return None


def _nothing(*_: Any) -> None:
    pass


# ---- strategies ----------------------------------------------------------------------------------


def has_own_format(strategy: Strategy) -> bool:
    """Whether ``strategy`` writes checkpoints past its `CheckpointIO`: folders of torch's or of
    DeepSpeed's.

    Their constructors take the setting and keep it to themselves (#20205 asks for an opening).
    Lightning: ``strategies/model_parallel.py``, ``_save_distributed_checkpoint``;
    ``strategies/fsdp.py``, ``_state_dict_type``.
    """
    if isinstance(strategy, ModelParallelStrategy):
        return strategy._save_distributed_checkpoint
    if isinstance(strategy, FSDPStrategy):
        return strategy._state_dict_type == "sharded"
    return isinstance(strategy, DeepSpeedStrategy)


def mesh_sizes(strategy: ModelParallelStrategy) -> tuple[Any, Any]:
    """Sizes of the data-parallel and the tensor-parallel side of the mesh, an int or "auto" each.

    See `set_data_parallel_size`.
    """
    return strategy._data_parallel_size, strategy._tensor_parallel_size


def set_data_parallel_size(strategy: ModelParallelStrategy, size: int) -> None:
    """Set what "auto" means, before the processes are laid out.

    Lightning takes the number of nodes for it (#19878): eight GPUs of one machine would all be
    tensor-parallel. How many processes there are is known only in ``setup_environment``.
    Lightning: ``strategies/model_parallel.py``, ``_data_parallel_size``.
    """
    strategy._data_parallel_size = size


# ---- the command line ----------------------------------------------------------------------------


class CLIHooks:
    """To stand before `LightningCLI` among a class's bases: what it offers no public hook for.

    Not a subclass of it, since ``lightning.pytorch.cli`` takes a second to import and only ``fit``
    needs it. Lightning: ``cli.py``.
    """

    def choose_callbacks(self, config: dict[str, Any], callbacks: list[Callback]) -> list[Callback]:
        """The callbacks that the Trainer gets beside those in ``config``; for subclasses.

        Args:
            config: the Trainer's arguments.
            callbacks: those that have a section of their own on the command line.

        The public ``instantiate_trainer`` sees neither ``callbacks`` nor the instances in
        ``config``. Lightning: ``LightningCLI._instantiate_trainer``.
        """
        return callbacks

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        chosen = self.choose_callbacks(config, callbacks)
        return super()._instantiate_trainer(config, chosen)  # type: ignore[misc]

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let the checkpoint's settings replace the config's in silence
        (#21455, #21408). Lightning: ``LightningCLI._parse_ckpt_path``."""
