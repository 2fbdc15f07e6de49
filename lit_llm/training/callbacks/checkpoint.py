"""Checkpoint: saves after whole optimizer steps, atomically; keeps the newest k and the best."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from lit_llm.models.parallel.sharded_checkpoint import Divided, write_share
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
from lit_llm.training.callbacks.final_weights import Final, FinalWeights
from lit_llm.training.callbacks.optimizer_steps import is_last_batch, planned_steps
from lit_llm.training.callbacks.rank_agreement import Ranks
from lit_llm.training.callbacks.signals import StopSignals, requeue
from lit_llm.training.sharded_checkpoint_io import finish, open_folders

RANGES: dict[str, Range] = {
    "every_steps": Range(1, 1e12), "keep_last": Range(1, 1e6), "max_minutes": positive(1e7),
}  # fmt: skip
"""Ranges of the numbers of `Checkpoint`."""


class Checkpoint(CheckpointAnswers):
    """Saves ``step-<n>.ckpt`` every ``every_steps`` optimizer steps and at the end.

    The best checkpoint is saved as ``best.ckpt``. A checkpoint of step n is written after
    everything of step n is done, including validation and logging, so a resumed run neither repeats
    nor misses a row of metrics. The file is written under another name, flushed to disk and then
    renamed, so a file called ``*.ckpt`` is whole. A thread writes it while training continues; an
    error of the thread, on any process, is raised before the next optimizer step. A checkpoint of
    several processes is renamed after all of them have finished.

    At the end of training the model is also written as a Hugging Face directory to ``final/``, if
    the module has ``save_pretrained``, and an adapter to ``adapter/``, if it has ``save_adapter``.
    The last checkpoint holds the weights from which training would continue; ``final/`` holds the
    module's weights at the end. The two differ if ``final`` takes the best step's weights, which
    the module then has after the fit, or if a callback such as Lightning's EMAWeightAveraging sets
    averaged weights. With the Trainer's ``fast_dev_run`` nothing is written.

    For Lightning, its loggers and scripts the callback has the attributes of a `ModelCheckpoint`:
    ``best_model_path``, ``ckpt_path="last"``.

    Signals:

    - Ctrl-C: a single process finishes its optimizer step and saves it. A second Ctrl-C stops at
      once.
    - SIGTERM to any process: all processes finish their step and save it. Then the first process
      raises `Preempted`, and the others exit. The signal is handled from `setup` on, and is ignored
      while the final model is written.
    - SIGUSR1 in a SLURM job: as SIGTERM, and then the first process requeues the job, as with
      Lightning.
    - After ``max_minutes`` of training the run saves and ends as with SIGTERM.

    Args:
        every_steps: optimizer steps between checkpoints. None: twenty checkpoints in the run, but
            at least 50 steps apart.
        keep_last: number of newest checkpoints to keep.
        monitor: metric whose best value makes a checkpoint the best. None: no best checkpoint.
        mode: whether the lowest ("min") or the highest ("max") value is the best.
        dirpath: folder of the checkpoints. None: ``checkpoints`` under the Trainer's
            default_root_dir.
        final: whether to write ``final/``, and of which weights: "last", those of the last step;
            "best", those of ``best.ckpt``; True, "best" for a run of more than one pass over the
            data that has a best checkpoint, else "last". See `FinalWeights`.
        background: whether to write in a thread. Training then waits only for a copy in CPU memory.
            The copy takes the memory of weights and optimizer once more on the first process, or
            for sharded checkpoints the memory of its own part on each process.
        max_minutes: limit of training time in this call, from its first step on. Set it a little
            below the limit of the scheduler.

    Attributes:
        final_weights: of which step the module's weights are, once training has ended.
        unchanged_since: a function that `SpikeGuard` sets. It returns the step that produced the
            current weights if later steps were skipped, else None. The newest checkpoint of an
            earlier step is then kept as well, so that training can go back to it.

    Raises:
        UserError: the disk is full (no unfinished file remains, older checkpoints are not touched);
            the strategy has its own checkpoint format; or processes would continue from different
            steps.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        keep_last: int = 2,
        monitor: str | None = "val_loss",
        mode: Literal["min", "max"] = "min",
        dirpath: str | None = None,
        final: Final = True,
        background: bool = True,
        max_minutes: float | None = None,
    ):
        if mode not in ("min", "max"):
            raise UserError(f"checkpoint.mode={mode}: must be min or max")
        super().__init__(dirpath, monitor, mode)
        check_ranges(locals(), RANGES, "checkpoint.")
        self.every_steps, self.keep_last, self.final, self.max_minutes = (
            every_steps, keep_last, final, max_minutes,
        )  # fmt: skip
        self.background = background
        self.final_weights = FinalWeights(final, monitor, mode)
        self.unchanged_since: Callable[[], int | None] | None = None
        self._snapshots, self._writer = Snapshots(copies=background), Writer()
        self._target: Path | None = None  # the checkpoint being written, on all processes
        # The result of `unchanged_since` for the checkpoint being written
        self._unchanged_since_step: int | None = None
        self._first_step, self._saved_step, self._interval = 0, -1, 0
        self._trained = False
        self._best, self._signals, self._ranks = BestScore(), StopSignals(), Ranks()
        self._loggers: list[Any] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Resolve the folder, prepare the strategy for sharded checkpoints, and catch signals.

        Raises:
            UserError: the strategy has its own checkpoint format.
        """
        if stage == "fit" and has_own_format(trainer.strategy):
            raise UserError(
                "trainer.strategy: a run cannot continue from the checkpoints that "
                f"{type(trainer.strategy).__name__} writes in its own format: set it to fsdp2"
            )
        self.folder = self.open_folder(trainer)
        open_folders(trainer.strategy)
        # Signals are caught from here on, because building the model, reading a checkpoint and
        # starting the loaders take time.
        if stage == "fit":
            self._trained = False
            self._signals.asked = 0
            self._signals.catch(trainer, signal.SIGTERM)
            self._signals.catch_requeue(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resolve the interval, and clean up after an interrupted save."""
        self._trained, self.final_weights.origin = True, None
        self.final_weights.takes_best(trainer)  # a mistake is reported before the first step
        self._ranks.join(trainer)
        self._first_step = trainer.global_step
        self._loggers = trainer.loggers
        self._began = time.monotonic()
        # `on_train_batch_start` communicates signals once per optimizer step, over the CPU.
        skip_sigterm_broadcast(trainer)
        # With several processes, Lightning's launcher kills the others when one ends by Ctrl-C.
        if trainer.world_size == 1:
            self._signals.catch(trainer, signal.SIGINT)
        self._interval = self.every_steps or 0
        if self.every_steps is None:
            steps = planned_steps(trainer)
            self._interval = 1000 if steps is None else max(50, steps // 20)
        resumed = self.folder / name_of(trainer.global_step)
        if trainer.is_global_zero and self.folder.is_dir():
            tidy(self.folder)
            # best.ckpt belongs to this run only if the run has a best score, or resumes from this
            # folder.
            keep_best = self.best_score is not None or resumed.exists()
            set_aside_later(self.folder, trainer.global_step, keep_best)
        # The run may have resumed from best.ckpt, or from another folder. `last` does not find
        # these, so this step is saved again.
        here = trainer.strategy.broadcast(resumed.exists())
        self._saved_step = trainer.global_step if here else -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before a new optimizer step, save the previous one if it is due, or stop if asked."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        count_steps(trainer)
        if trainer.global_step > self._first_step and self._out_of_time():
            self._signals.asked = self._signals.asked or signal.SIGTERM
        # All processes agree on the signal and on whether any of them is still writing.
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
            said = f"saved step {trainer.global_step}: --ckpt_path last continues from there"
            if stop == signal.SIGINT:
                rank_zero_info(said)
                raise KeyboardInterrupt
            if not trainer.is_global_zero:
                # For any other status a launcher assumes a crash, and kills the first process.
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
        """Make the Trainer validate after the last step; it does so only if it is told to stop."""
        # Otherwise validation is at the end of an epoch.
        counts_batches = trainer.check_val_every_n_epoch is None
        if trainer.global_step == trainer.max_steps or (
            counts_batches and is_last_batch(trainer, batch_idx)
        ):
            validate_after_this_batch(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that there is a score. The best is saved before the next optimizer step."""
        self._best.validated(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, before the weights are replaced at the end of training."""
        if ends_with_epoch(trainer):
            self._save_end(trainer)
            # Now, so that what other callbacks measure in `on_train_end` is what `final/` holds.
            self._set_final_weights(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, if training ended within an epoch, and export the model."""
        self._save_end(trainer)
        self._set_final_weights(trainer)
        self._write_final(trainer, pl_module)

    def _set_final_weights(self, trainer: L.Trainer) -> None:
        """Load the weights that ``final/`` gets. All processes must call this."""
        self._finish()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.final_weights.load(trainer, Path(self.best_model_path), self.best_score)

    def _save_end(self, trainer: L.Trainer) -> None:
        if self._best.pending:
            self._save_best(trainer)
        if trainer.global_step > self._saved_step:
            self._save_step(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the model of a run that was stopped after its last step.

        When it is resumed, the Trainer skips training, and `on_train_end` is not called.
        """
        if self._trained or not trainer.global_step or not self.final:
            return
        use_averages(trainer, pl_module)
        self._set_final_weights(trainer)
        # ``final/`` may hold the model of an earlier end of this run, at fewer steps.
        origin = self.final_weights.origin
        if origin and step_of_final(trainer, self.folder.parent) != origin.global_step:
            self._write_final(trainer, pl_module)

    def _write_final(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.final and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_final(trainer, pl_module, self.folder.parent, self.final_weights.origin)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Finish the checkpoint that is being written, and restore the signal handlers."""
        try:
            self._writer.join()
            # To finish a checkpoint all processes are needed, but others may have no exception.
            if self._ranks.group is None and not isinstance(exception, UserError):
                self._finish()
        finally:
            self._signals.give_back()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self._signals.give_back()

    def _out_of_time(self) -> bool:
        limit = math.inf if self.max_minutes is None else 60 * self.max_minutes
        return time.monotonic() - self._began > limit

    @property
    def best_score(self) -> float | None:
        """The best value of ``monitor`` so far."""
        return None if self.best_model_score is None else float(self.best_model_score)

    def _save_step(self, trainer: L.Trainer) -> None:
        # Loggers are notified of an earlier checkpoint before this one becomes the last.
        self._finish()
        self.saves_last(self.folder / name_of(trainer.global_step))
        self._write(trainer, name_of(trainer.global_step))
        self._saved_step = trainer.global_step

    def _save_best(self, trainer: L.Trainer) -> None:
        score = self._best.improved(trainer, self.monitor, self.best_score, self.mode)
        if score is not None:
            self._finish()
            self.saves_best(self.folder / "best.ckpt", score)
            self._write(trainer, "best.ckpt")

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._finish()
        self._unchanged_since_step = (
            None if self.unchanged_since is None else self.unchanged_since()
        )
        target = self.folder / name
        with telling_of_the_disk(target), self._snapshots.instead_of_files(trainer.strategy):
            trainer.save_checkpoint(target, weights_only=False)
        # The snapshot is on the first process, or for sharded checkpoints on all processes.
        taken, self._snapshots.taken = self._snapshots.taken, None
        if isinstance(taken, Divided):
            self._writer.start(partial(write_share, taken, part_of(target), trainer.global_rank))
        elif taken is not None:
            self._writer.start(partial(write, taken, target))
        self._target = target
        if not self.background:
            self._finish()

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written. All processes must call this."""
        target, self._target = self._target, None
        if target is None:
            return
        try:
            with telling_of_the_disk(target):
                finish(self._writer.wait, target, self._ranks.group)
                if self._ranks.first:
                    remove_old(self.folder, self.keep_last, way_back=self._unchanged_since_step)
                    self.tell_loggers(self._loggers)
        except UserError:
            if self._ranks.first:
                raise
            # The first process reports the error. With any other status the launcher would kill it.
            sys.exit(0)

    def newest_whole(self, trainer: L.Trainer, before: float = math.inf) -> Path | None:
        """The run's newest whole checkpoint of a step below ``before``.

        All processes must call this. The answer is that of the first process.
        """
        self._finish()
        return trainer.strategy.broadcast(
            newest_whole(self.folder, before)[0] if trainer.is_global_zero else None
        )

    def forget(self, trainer: L.Trainer, since: int) -> None:
        """Remove the checkpoints of ``since`` and later steps, because the run went back."""
        if trainer.is_global_zero:
            remove_from(self.folder, since)

    def state_dict(self) -> dict[str, Any]:
        """State of a `ModelCheckpoint`, the best score as a number, torch's CPU random state."""
        return {
            **super().state_dict(),
            "best_score": self.best_score,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        super().load_state_dict(state_dict)
        torch.set_rng_state(state_dict["rng"])

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the saved loop counters to the end of the optimizer step, see `end_at_step`."""
        end_at_step(checkpoint, trainer.num_training_batches)
