"""Checkpoint: atomic, at optimizer-step borders, the newest k and the best."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import Preempted, UserError
from lit_llm.io.atomic import part_of
from lit_llm.lightning_internals import (
    count_steps,
    end_at_step,
    ends_with_epoch,
    has_own_format,
    skip_sigterm_broadcast,
    validate_after_this_batch,
)
from lit_llm.models.parallel.parts import Divided, write_share
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.training.callbacks.background import Snapshots, Writer, write
from lit_llm.training.callbacks.best_score import BestScore
from lit_llm.training.callbacks.checkpoint_answers import CheckpointAnswers
from lit_llm.training.callbacks.checkpoint_folder import (
    name_of,
    newest_whole,
    remove_from,
    remove_old,
    set_aside_later,
    telling_of_the_disk,
    tidy,
)
from lit_llm.training.callbacks.final_export import step_of_final, use_averages, write_final
from lit_llm.training.callbacks.optimizer_steps import is_last_batch, planned_steps
from lit_llm.training.callbacks.rank_agreement import Ranks
from lit_llm.training.callbacks.signals import StopSignals, requeue
from lit_llm.training.parts_io import finish, open_folders

RANGES: dict[str, Range] = {
    "every_steps": Range(1, 1e12), "keep_last": Range(1, 1e6), "max_minutes": positive(1e7),
}  # fmt: skip
"""Ranges of the numbers of `Checkpoint`."""


class Checkpoint(CheckpointAnswers):
    """Saves ``step-<n>.ckpt`` every ``every_steps`` optimizer steps and at the end, and the best as
    ``best.ckpt``.

    A checkpoint of step n is written once everything of step n is done, its validation and logging
    included, so a
    resumed run neither repeats nor misses a row. It is written under another name, flushed to disk
        and renamed: what is
    called ``*.ckpt`` is whole. A thread writes while training goes on; what went wrong there, on
    any process, is told before the next optimizer step. What several processes wrote gets its name
    once they all are done. At the end of training the model is also written as a Hugging Face
    directory to ``final/``, if the module has ``save_pretrained``, and an adapter to ``adapter/``,
    if it has ``save_adapter``.

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
        every_steps: optimizer steps between checkpoints. None: twenty times in the run, but at
            least 50 apart.
        keep_last: how many of the newest to keep.
        monitor: metric whose lowest value makes a checkpoint the best. None: no best one.
        dirpath: None: ``checkpoints`` under the Trainer's default_root_dir.
        final: whether to write ``final/``.
        background: write in a thread; training then waits for a copy in the CPU's memory alone. It
            takes the memory of weights and optimizer once more: on the first process, or of what is
            saved in parts on each its own.
        max_minutes: of this call, from its first step on; a little less than a scheduler grants.

    Attributes:
        unchanged_since: set by `SpikeGuard`: which step made the weights as they are, if steps were
            skipped since, else None. The newest checkpoint of an earlier step is then kept besides
            the others: the way back.

    Raises:
        UserError: the disk is full (nothing half-written stays, older checkpoints are left alone);
            a strategy whose checkpoints have a format of its own; processes that would go on from
            different steps.
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
        self._first_step, self._saved_step, self._interval = 0, -1, 0
        self._trained = False
        self._best, self._signals, self._ranks = BestScore(), StopSignals(), Ranks()
        self._loggers: list[Any] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resolve the folder; have the strategy go on from checkpoints in parts, or refuse one with
        its own format."""
        if stage == "fit" and has_own_format(trainer.strategy):
            raise UserError(
                f"trainer.strategy: no run goes on from what {type(trainer.strategy).__name__} "
                f"writes, "
                "checkpoints in a format of its own: set it to fsdp2"
            )
        self.folder = self.open_folder(trainer)
        open_folders(trainer.strategy)
        # A model is to be built yet, a checkpoint to be read, loaders to be started.
        if stage == "fit":
            self._trained = False
            self._signals.asked = 0
            self._signals.catch(trainer, signal.SIGTERM)
            self._signals.catch_requeue(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resolve the interval and forget what an interrupted save left behind."""
        self._trained = True
        self._ranks.join(trainer)
        self._first_step = trainer.global_step
        self._loggers = trainer.loggers
        self._began = time.monotonic()
        # `on_train_batch_start` asks all processes once an optimizer step, on the CPU.
        skip_sigterm_broadcast(trainer)
        # Of several, Lightning's launcher kills the others when one ends by Ctrl-C.
        if trainer.world_size == 1:
            self._signals.catch(trainer, signal.SIGINT)
        self._interval = self.every_steps or 0
        if self.every_steps is None:
            steps = planned_steps(trainer)
            self._interval = 1000 if steps is None else max(50, steps // 20)
        resumed = self.folder / name_of(trainer.global_step)
        if trainer.is_global_zero and self.folder.is_dir():
            tidy(self.folder)
            # Another run's best is not this one's.
            keep_best = self.best_score is not None or resumed.exists()
            set_aside_later(self.folder, trainer.global_step, keep_best)
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
        stop, writing = self._ranks.highest(self._signals.asked, int(self._writer.busy))
        if not writing:
            self._finish()
        if trainer.global_step > self._saved_step:
            if self._best.pending:
                self._save_best(trainer)
            step = trainer.global_step
            due = step % self._interval == 0 or step == self._first_step
            if stop or (step > 0 and due):
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
        """Have the Trainer validate after the very last step, which it does only when told to
        stop."""
        counts_batches = trainer.check_val_every_n_epoch is None  # else an epoch's end validates
        if trainer.global_step == trainer.max_steps or (
            counts_batches and is_last_batch(trainer, batch_idx)
        ):
            validate_after_this_batch(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is a score; it is acted on at the next border."""
        self._best.validated(trainer)

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
        if self._best.pending:
            self._save_best(trainer)
        if trainer.global_step > self._saved_step:
            self._save_step(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model of a run that had ended but was stopped while it did: the Trainer skips
        its training."""
        if self._trained or not trainer.global_step:
            return
        use_averages(trainer, pl_module)
        # It may have ended at fewer steps before, and left the model of those.
        if step_of_final(trainer, self.folder.parent) != trainer.global_step:
            self._write_final(trainer, pl_module)

    def _write_final(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.final and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_final(trainer, pl_module, self.folder.parent)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let what is being written be finished, and give the signals back to whoever had them."""
        try:
            self._writer.join()
            # The others may not have met one.
            if self._ranks.group is None and not isinstance(exception, UserError):
                self._finish()
        finally:
            self._signals.give_back()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back to whoever had them."""
        self._signals.give_back()

    def _out_of_time(self) -> bool:
        limit = math.inf if self.max_minutes is None else 60 * self.max_minutes
        return time.monotonic() - self._began > limit

    @property
    def best_score(self) -> float | None:
        """The lowest value of ``monitor`` so far."""
        return None if self.best_model_score is None else float(self.best_model_score)

    def _save_step(self, trainer: L.Trainer) -> None:
        self._finish()  # the loggers hear of an earlier one before this one is called the last
        self.saves_last(self.folder / name_of(trainer.global_step))
        self._write(trainer, name_of(trainer.global_step))
        self._saved_step = trainer.global_step

    def _save_best(self, trainer: L.Trainer) -> None:
        score = self._best.improved(trainer, self.monitor, self.best_score)
        if score is not None:
            self._finish()
            self.saves_best(self.folder / "best.ckpt", score)
            self._write(trainer, "best.ckpt")

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._finish()
        self._unchanged = None if self.unchanged_since is None else self.unchanged_since()
        target = self.folder / name
        with telling_of_the_disk(target), self._snapshots.instead_of_files(trainer.strategy):
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
            with telling_of_the_disk(target):
                finish(self._writer.wait, target, self._ranks.group)
                if self._ranks.first:
                    remove_old(self.folder, self.keep_last, way_back=self._unchanged)
                    self.tell_loggers(self._loggers)
        except UserError:
            if self._ranks.first:
                raise
            sys.exit(0)  # the first one tells; its launcher would kill it for any other status

    def newest_whole(self, trainer: L.Trainer, before: float = math.inf) -> Path | None:
        """The run's newest whole checkpoint of a step below ``before``, by the first process's
        judgement."""
        self._finish()
        return trainer.strategy.broadcast(
            newest_whole(self.folder, before)[0] if trainer.is_global_zero else None
        )

    def forget(self, trainer: L.Trainer, since: int) -> None:
        """Remove the checkpoints from step ``since`` on: the run went back behind them."""
        if trainer.is_global_zero:
            remove_from(self.folder, since)

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
