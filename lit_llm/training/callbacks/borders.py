"""Where optimizer steps end, which of them are logged, and under which number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L


def at_border(trainer: L.Trainer, batch_idx: int) -> bool:
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


def _log_every(trainer: Any) -> int:  # set by the Trainer, unknown to its type
    return trainer.log_every_n_steps


def count_steps(trainer: L.Trainer) -> None:
    """Have the Trainer's own count of steps, by which it decides what to log, agree with the
    optimizer's.

    It counts a validation that it skips when it resumes as a step. Call it before the first
    micro-batch of a step.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def number_by_steps_done(trainer: L.Trainer, steps_done: Callable[[], int]) -> None:
    """Have the loggers get a module's metrics under the number of optimizer steps done, as
    ``metrics.csv`` counts.

    Lightning counts a step after it has logged it, so its numbers begin at 0. A metric called
    "step" would set the number too, but callbacks see that metric as well: ModelCheckpoint takes
    file names from it.
    """
    connector: Any = trainer._logger_connector
    connector.log_metrics = partial(_log_metrics, connector, steps_done)


def number_as_lightning_does(trainer: L.Trainer) -> None:
    """Undo `number_by_steps_done`, for another module under the same Trainer."""
    vars(trainer._logger_connector).pop("log_metrics", None)


def _log_metrics(
    connector: Any,
    steps_done: Callable[[], int],
    metrics: dict[str, Any],
    step: int | None = None,
) -> None:
    if step is None and "step" not in metrics:  # a user's own metric of that name keeps its meaning
        step = steps_done()
    type(connector).log_metrics(connector, metrics, step=step)
