"""Where optimizer steps end, and which of them are logged."""

from __future__ import annotations

from typing import Any

import lightning as L

from lit_llm.lightning_internals import batch_of_epoch


def is_step_end(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch ``batch_idx`` is the last of an optimizer step."""
    done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return (
        done or batch_idx + 1 == trainer.num_training_batches
    )  # Lightning steps on an epoch's last batch


def planned_steps(trainer: L.Trainer) -> int | None:
    """The optimizer step at which the run ends, over all epochs; None where nothing sets an end."""
    steps = trainer.estimated_stepping_batches  # -1: batches without a number, and no max_steps
    return None if steps == float("inf") or steps < 0 else int(steps)


def logs_now(trainer: L.Trainer) -> bool:
    """Whether the Trainer logs the optimizer step just done."""
    every = _log_every(trainer)  # 0: never, as Lightning has it
    return every > 0 and trainer.global_step % every == 0


def first_or_last(trainer: L.Trainer) -> bool:
    """Whether the optimizer step just done is the first or the last of the whole run.

    These are logged too, else a run of fewer steps than ``log_every_n_steps`` has nothing to show.
    It is the same on all processes, and the same for a run that was resumed as for one that was
    not. A Trainer that logs nothing logs neither.
    """
    if _log_every(trainer) == 0:
        return False
    done = trainer.global_step
    return done in (1, trainer.max_steps) or is_last_batch(trainer, batch_of_epoch(trainer))


def is_last_batch(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch ``batch_idx`` of an epoch is the last of the last epoch."""
    last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
    return last_epoch and batch_idx + 1 == trainer.num_training_batches


def _log_every(trainer: Any) -> int:  # set by the Trainer, unknown to its type
    return trainer.log_every_n_steps
