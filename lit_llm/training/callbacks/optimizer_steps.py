"""Helpers of callbacks: whether an optimizer step ends, and whether it is logged."""

from __future__ import annotations

from typing import Any

import lightning as L

from lit_llm.lightning_internals import batch_of_epoch


def is_step_end(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch ``batch_idx`` is the last of an optimizer step."""
    done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    # Lightning also makes an optimizer step after the last batch of an epoch.
    return done or batch_idx + 1 == trainer.num_training_batches


def planned_steps(trainer: L.Trainer) -> int | None:
    """The optimizer step at which the run ends, over all epochs; None if no end is set."""
    # -1 if neither the number of batches nor max_steps is known.
    steps = trainer.estimated_stepping_batches
    return None if steps == float("inf") or steps < 0 else int(steps)


def logs_now(trainer: L.Trainer) -> bool:
    """Whether the Trainer logs the optimizer step that has just ended."""
    every = _log_every(trainer)  # 0: never, as in Lightning
    return every > 0 and trainer.global_step % every == 0


def first_or_last(trainer: L.Trainer) -> bool:
    """Whether the optimizer step that has just ended is the first or the last of the whole run.

    These steps are logged too. Otherwise a run of fewer than ``log_every_n_steps`` steps would log
    nothing. The answer is the same on all processes, and the same for resumed runs and runs without
    interruption. It is False for a Trainer that logs nothing.
    """
    if _log_every(trainer) == 0:
        return False
    done = trainer.global_step
    return done in (1, trainer.max_steps) or is_last_batch(trainer, batch_of_epoch(trainer))


def is_last_batch(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch ``batch_idx`` of an epoch is the last of the last epoch."""
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return last_epoch and batch_idx + 1 == trainer.num_training_batches


def _log_every(trainer: Any) -> int:
    # The Trainer sets the attribute, but its type does not declare it.
    return trainer.log_every_n_steps
