"""Checkpoint: atomic, at optimizer-step borders, the newest k and the best."""

from __future__ import annotations

import errno
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_llm.errors import Preempted, UserError, more_room
from lit_llm.io.atomic import part_of
from lit_llm.lightning_internals import (
    count_steps,
    end_at_step,
    ends_with_epoch,
    has_own_format,
    skip_sigterm_broadcast,
    validate_after_this_batch,
)
from lit_llm.models.parallel.parts import Divided, discard, put, write_share
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.training.callbacks.background import Snapshots, Writer, write
from lit_llm.training.callbacks.borders import planned_steps
from lit_llm.training.callbacks.checkpoint_answers import CheckpointAnswers
from lit_llm.training.callbacks.checkpoint_folder import (
    checkpoints,
    name_of,
    newest_whole,
    step_of,
    tidy,
)
from lit_llm.training.callbacks.signals import StopSignals, requeue
from lit_llm.training.parts_io import finish, open_folders
from lit_llm.training.strategy import is_sharded

_MODEL_STEP = "trainer_state.json"  # where transformers' Trainer writes it too


RANGES: dict[str, Range] = {
    "every_steps": Range(1, 1e12), "keep_last": Range(1, 1e6), "max_minutes": positive(1e7),
}  # fmt: skip
"""Ranges of the numbers of `Checkpoint`."""


class Checkpoint(CheckpointAnswers):
    """Saves ``step-<n>.ckpt`` every ``every_steps`` optimizer steps and at the end, and the best as ``best.ckpt``.

    A checkpoint of step n is written once everything of step n is done, its validation and logging included, so a
    resumed run neither repeats nor misses a row. It is written under another name, flushed to disk and renamed: what is
    called ``*.ckpt`` is whole. A thread writes while training goes on; what went wrong there, on any process, is told
    before the next optimizer step. What several processes wrote gets its name once they all are done. At the end of
    training the model is also written as a Hugging Face directory to ``final/``, if the module has ``save_pretrained``,
    and an adapter to ``adapter/``, if it has ``save_adapter``.

    The last checkpoint holds the weights that training would go on from, ``final/`` those that the
    module has at the end: an average, if a callback such as Lightning's EMAWeightAveraging puts it
    there. Nothing is written under the Trainer's ``fast_dev_run``. To Lightning, its loggers and
    scripts it answers as a `ModelCheckpoint`: ``best_model_path``, ``ckpt_path="last"``. With
    ``max_minutes`` a run that has trained so long saves and ends as SIGTERM would end it.

    Ctrl-C lets a single process finish its optimizer step and saves it; a second one stops at once.
    SIGTERM, to any of the processes, has all of them finish and save their step; the first raises
    `Preempted`, the others exit. It is heard from `setup` on, and changes nothing once the model is
    being written. In a job of SLURM SIGUSR1 does the same, and the first process then requeues the
    job, as Lightning's users expect.

    Args:
        every_steps: optimizer steps between checkpoints. None: twenty times in the run, but at least 50 apart.
        keep_last: how many of the newest to keep.
        monitor: metric whose lowest value makes a checkpoint the best. None: no best one.
        dirpath: None: ``checkpoints`` under the Trainer's default_root_dir.
        final: whether to write ``final/``.
        background: write in a thread; training then waits for a copy in the CPU's memory alone. It takes the memory of
            weights and optimizer once more: on the first process, or of what is saved in parts on each its own.
        max_minutes: of this call, from its first step on; a little less than a scheduler grants.

    Attributes:
        unchanged_since: set by `SpikeGuard`: which step made the weights as they are, if steps were skipped since, else
            None. The newest checkpoint of an earlier step is then kept besides the others: the way back.

    Raises:
        UserError: the disk is full (nothing half-written stays, older checkpoints are left alone); a strategy whose
            checkpoints have a format of its own; processes that would go on from different steps.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        keep_last: int = 2,
        monitor: str | None = "val_loss",
        dirpath: str | None = None,
        final: bool = True,
        background: bool = True,
        max_minutes: float | None = None,
    ):
        super().__init__(dirpath, monitor)
        check_ranges(locals(), RANGES, "checkpoint.")
        self.every_steps, self.keep_last, self.final, self.max_minutes = (
            every_steps, keep_last, final, max_minutes,
        )  # fmt: skip
        self.background = background
        self.unchanged_since: Callable[[], int | None] | None = None
        self._snapshots, self._writer = Snapshots(copies=background), Writer()
        self._target: Path | None = None  # what is being written, on all processes
        self._unchanged: int | None = None  # since which step, as it is written
        self._saved_step = -1
        self._trained = False
        self._told_of_monitor = False
        self._interval = 0
        self._first_step = 0
        self._unscored = False  # a validation has ended whose weights are not saved yet
        self._signals = StopSignals()
        self._group: Any = None  # of all processes, on CPU
        self._first_process = True
        self._loggers: list[Any] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resolve the folder; have the strategy go on from checkpoints in parts, or refuse one with its own format."""
        if stage == "fit" and has_own_format(trainer.strategy):
            raise UserError(
                f"trainer.strategy: no run goes on from what {type(trainer.strategy).__name__} writes, "
                "checkpoints in a format of its own: set it to fsdp2"
            )
        self.folder = self.open_folder(trainer)
        open_folders(trainer.strategy)
        if (
            stage == "fit"
        ):  # a model is to be built yet, a checkpoint to be read, loaders to be started
            self._trained = False
            self._signals.asked = 0
            self._signals.catch(trainer, signal.SIGTERM)
            self._signals.catch_requeue(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resolve the interval and forget what an interrupted save left behind."""
        self._trained = True
        _check_steps(trainer)
        self._first_step, self._first_process = trainer.global_step, trainer.is_global_zero
        self._loggers = trainer.loggers
        self._began = time.monotonic()
        self._group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None
        # `on_train_batch_start` asks all processes once an optimizer step, on the CPU.
        skip_sigterm_broadcast(trainer)
        if (
            trainer.world_size == 1
        ):  # of several, Lightning's launcher kills the others when one ends by Ctrl-C
            self._signals.catch(trainer, signal.SIGINT)
        self._interval = self.every_steps or 0
        if self.every_steps is None:
            steps = planned_steps(trainer)
            self._interval = 1000 if steps is None else max(50, steps // 20)
        resumed = self.folder / name_of(trainer.global_step)
        if trainer.is_global_zero and self.folder.is_dir():
            tidy(self.folder)
            for file in checkpoints(self.folder):
                # Resumed from an earlier one: what came after it is not this run's past, nor what `last` should find.
                if step_of(file) > trainer.global_step:
                    put(file, file.with_name(f"abandoned-{file.name}"))
            best = self.folder / "best.ckpt"
            # Another run's. One of this run's later steps is written over by the next score.
            if self.best_score is None and best.exists() and not resumed.exists():
                put(best, best.with_name("abandoned-best.ckpt"))
        # What was resumed may be the best one, or lie elsewhere: that is not where `last` looks.
        here = trainer.strategy.broadcast(resumed.exists())
        self._saved_step = trainer.global_step if here else -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the step that ended before this batch, when one is due."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        count_steps(trainer)
        if trainer.global_step > self._first_step and self._out_of_time():
            self._signals.asked = self._signals.asked or signal.SIGTERM
        stop, writing = self._highest(self._signals.asked, int(self._writer.busy))
        if not writing:
            self._finish()
        if trainer.global_step > self._saved_step:
            if self._unscored:
                self._save_best(trainer)
            due = (
                trainer.global_step % self._interval == 0 or trainer.global_step == self._first_step
            )
            if stop or (trainer.global_step > 0 and due):
                self._save_step(trainer)
        if stop:
            self._finish()
            said = f"saved step {trainer.global_step}: --ckpt_path last goes on from there"
            if stop == signal.SIGINT:
                rank_zero_info(said)
                raise KeyboardInterrupt
            if not trainer.is_global_zero:
                # Launchers take any other status of theirs for a crash, and kill the first process.
                sys.exit(0)
            if stop == self._signals.requeues:
                rank_zero_info(said)
                said = requeue()
            raise Preempted(said)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Have the Trainer validate after the very last step, which it does only when told to stop."""
        counts_batches = (
            trainer.check_val_every_n_epoch is None
        )  # else an epoch's end is validated anyway
        last_epoch = (
            trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        )
        last_batch = last_epoch and batch_idx + 1 == trainer.num_training_batches
        if trainer.global_step == trainer.max_steps or (counts_batches and last_batch):
            validate_after_this_batch(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is a score; it is acted on at the next border."""
        # What training starts from needs no copy.
        self._unscored = (
            trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step > 0
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, before callbacks put other weights in the module when training
        ends."""
        if ends_with_epoch(trainer):
            self._save_end(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, if training ended within an epoch, and the model for others to
        use."""
        self._save_end(trainer)
        self._finish()
        self._write_final(trainer, pl_module)

    def _save_end(self, trainer: L.Trainer) -> None:
        if self._unscored:
            self._save_best(trainer)
        if trainer.global_step > self._saved_step:
            self._save_step(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model of a run that had ended but was stopped while it did: the Trainer skips its training."""
        if self._trained or not trainer.global_step:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(
                callback, WeightAveraging
            ):  # of a checkpoint the module has the raw weights
                callback.on_train_end(trainer, pl_module)
        written = trainer.strategy.broadcast(_step_of_model(self.folder.parent / "final"))
        if (
            written != trainer.global_step
        ):  # it may have ended at fewer steps before, and left the model of those
            self._write_final(trainer, pl_module)

    def _write_final(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        save_pretrained: Any = getattr(pl_module, "save_pretrained", None)
        sharded = is_sharded(trainer)  # then no process has the weights alone
        if self.final and save_pretrained is not None and (trainer.is_global_zero or sharded):
            target = self.folder.parent / "final"
            part = target.with_name("final.part")
            if trainer.is_global_zero:
                shutil.rmtree(part, ignore_errors=True)
            save_adapter: Any = getattr(pl_module, "save_adapter", None)
            try:
                save_pretrained(part)
                if trainer.is_global_zero:
                    (part / _MODEL_STEP).write_text(
                        json.dumps({"global_step": trainer.global_step}) + "\n"
                    )
                if save_adapter is not None:
                    save_adapter(self.folder.parent / "adapter")
            except Exception as error:
                shutil.rmtree(part, ignore_errors=True)
                if not _disk_problem(error):
                    raise
                raise UserError(
                    f"{target}: could not be written ({error}); {more_room()} and run again "
                    "with --ckpt_path last"
                ) from error
            if not trainer.is_global_zero:
                return
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            rank_zero_info(f"wrote {target}: a Hugging Face directory, for transformers and vLLM")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let what is being written be finished, and give the signals back to whoever had them."""
        try:
            self._writer.join()
            if self._group is None and not isinstance(
                exception, UserError
            ):  # the others may not have met one
                self._finish()
        finally:
            self._signals.give_back()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back to whoever had them."""
        self._signals.give_back()

    def _out_of_time(self) -> bool:
        return (
            self.max_minutes is not None and time.monotonic() - self._began > 60 * self.max_minutes
        )

    def _highest(self, *numbers: int) -> list[int]:
        """The highest of each number that any of the processes has.

        They get a signal at different steps, and are done with their parts of a checkpoint at different times.
        """
        if self._group is None:
            return list(numbers)
        highest = torch.tensor(numbers)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
        return highest.tolist()

    @property
    def best_score(self) -> float | None:
        """The lowest value of ``monitor`` so far."""
        return None if self.best_model_score is None else float(self.best_model_score)

    def _save_step(self, trainer: L.Trainer) -> None:
        self.saves_last(self.folder / name_of(trainer.global_step))
        self._write(trainer, name_of(trainer.global_step))
        self._saved_step = trainer.global_step

    def _remove_old(self) -> None:
        old = checkpoints(self.folder)[: -self.keep_last]
        way_back = [
            file for file in old if self._unchanged is not None and step_of(file) < self._unchanged
        ][-1:]
        for file in old:
            if file not in way_back:
                discard(file)

    def _save_best(self, trainer: L.Trainer) -> None:
        self._unscored = False
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            if not self._told_of_monitor:
                self._told_of_monitor = True
                logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
                rank_zero_warn(
                    f"checkpoint.monitor={self.monitor}: no such metric was logged, so there is no "
                    f"best.ckpt; logged: {logged}"
                )
            return
        # The first rank's value: ranks that disagreed would wait for each other in the save.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        if math.isfinite(score) and (self.best_score is None or score < self.best_score):
            self.saves_best(self.folder / "best.ckpt", score)
            self._write(trainer, "best.ckpt")

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._finish()
        self._unchanged = None if self.unchanged_since is None else self.unchanged_since()
        target = self.folder / name
        with self._telling(target), self._snapshots.instead_of_files(trainer.strategy):
            trainer.save_checkpoint(target, weights_only=False)
        # On the first process, or on all of them if it is in parts.
        taken, self._snapshots.taken = self._snapshots.taken, None
        if isinstance(taken, Divided):
            self._writer.start(partial(write_share, taken, part_of(target), trainer.global_rank))
        elif taken is not None:
            self._writer.start(partial(write, taken, target))
        self._target = target
        if not self.background:
            self._finish()

    def _finish(self) -> None:
        """Have what is being written finished; all processes call it."""
        target, self._target = self._target, None
        if target is None:
            return
        try:
            with self._telling(target):
                finish(self._writer.wait, target, self._group)
                if self._first_process:
                    self._remove_old()
                    self.tell_loggers(self._loggers)
        except UserError:
            if self._first_process:
                raise
            sys.exit(0)  # the first one tells; its launcher would kill it for any other status

    @contextmanager
    def _telling(self, target: Path) -> Iterator[None]:
        """Make a UserError of what is the disk's fault."""
        try:
            yield
        except Exception as error:
            if not _disk_problem(error):
                raise
            kept = checkpoints(self.folder)
            raise UserError(
                f"{target}: the checkpoint could not be written ({error}); {more_room()} and "
                "resume with --ckpt_path last" + (f" from {kept[-1].name}" if kept else "")
            ) from error

    def newest_whole(self, trainer: L.Trainer, before: float = math.inf) -> Path | None:
        """The run's newest whole checkpoint of a step below ``before``, by the first process's judgement."""
        self._finish()
        return trainer.strategy.broadcast(
            newest_whole(self.folder, before)[0] if trainer.is_global_zero else None
        )

    def forget(self, trainer: L.Trainer, since: int) -> None:
        """Remove the checkpoints from step ``since`` on: the run went back behind them."""
        if trainer.is_global_zero:
            for file in checkpoints(self.folder):
                if step_of(file) >= since:
                    discard(file)

    def state_dict(self) -> dict[str, Any]:
        """That of a `ModelCheckpoint`, the best score as a number and torch's CPU random state."""
        return {
            **super().state_dict(),
            "best_score": self.best_score,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state_dict)
        torch.set_rng_state(state_dict["rng"])

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make the saved loop counters those of the border."""
        end_at_step(checkpoint, trainer.num_training_batches)


def _check_steps(trainer: L.Trainer) -> None:
    """See that all processes go on from one step: each has looked for a checkpoint itself.

    Raises:
        UserError: on the first process; the others exit, as their launcher would kill it for any other end.
    """
    steps = [trainer.global_step] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(steps, trainer.global_step)
    for rank, step in enumerate(steps):
        if step != steps[0]:
            if not trainer.is_global_zero:
                sys.exit(0)
            raise UserError(
                f"--ckpt_path: the first process goes on from step {steps[0]}, process {rank} from step {step}: put "
                "the run folder where all processes see the same checkpoints"
            )


def _step_of_model(folder: Path) -> int | None:
    """Of ``final/``; None if it is not there or does not say."""
    try:
        return json.loads((folder / _MODEL_STEP).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _disk_problem(error: BaseException) -> bool:
    """Whether ``error`` is of the disk: torch's zip writer and safetensors have exceptions of their own for it."""
    if isinstance(error, OSError):
        return error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.EIO,
            errno.EFBIG,
        )
    said = str(error)
    return any(
        words in said
        for words in (
            "No space left",
            "file write failed",
            "unexpected pos",
            "Disk quota",
            "too large",
        )
    )
