"""Where optimizer steps end, and which of them are logged."""

from __future__ import annotations

from typing import Any

import lightning as L


def at_border(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch ``batch_idx`` is the last of an optimizer step."""
    done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return (
        done or batch_idx + 1 == trainer.num_training_batches
    )  # Lightning steps on an epoch's last batch


def logs_now(trainer: L.Trainer) -> bool:
    """Whether the Trainer logs the optimizer step just done."""
    every = _log_every(trainer)  # 0: never, as Lightning has it
    return every > 0 and trainer.global_step % every == 0


def _log_every(trainer: Any) -> int:  # set by the Trainer, unknown to its type
    return trainer.log_every_n_steps
