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


def first_or_last(trainer: L.Trainer) -> bool:
    """Whether the optimizer step just done is the first or the last of the whole run.

    These are logged too, else a run of fewer steps than ``log_every_n_steps`` has nothing to show.
    It is the same on all processes, and the same for a run that was resumed as for one that was
    not. A Trainer that logs nothing logs neither.
    """
    if _log_every(trainer) == 0:
        return False
    done, most, epochs = trainer.global_step, trainer.max_steps, trainer.max_epochs
    batch_idx: int = trainer.fit_loop.epoch_loop.batch_idx
    ends = batch_idx + 1 == trainer.num_training_batches
    ends = ends and epochs is not None and trainer.current_epoch + 1 == epochs
    return done == 1 or done == most or ends


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
    ``metrics.csv`` counts; those of the first and the last step too.

    Lightning counts a step after it has logged it, so its numbers begin at 0. A metric called
    "step" would set the number too, but callbacks see that metric as well: ModelCheckpoint takes
    file names from it.
    """
    connector: Any = trainer._logger_connector
    connector.log_metrics = partial(_log_metrics, connector, steps_done)
    connector.update_train_step_metrics = partial(_update_train_step_metrics, connector)


def number_as_lightning_does(trainer: L.Trainer) -> None:
    """Undo `number_by_steps_done`, for another module under the same Trainer."""
    for name in ("log_metrics", "update_train_step_metrics"):
        vars(trainer._logger_connector).pop(name, None)


def _update_train_step_metrics(connector: Any) -> None:
    """As Lightning does it, and at the first and last step whatever their numbers."""
    type(connector).update_train_step_metrics(connector)
    trainer = connector.trainer
    if trainer.fit_loop._should_accumulate() or trainer.fast_dev_run:
        return
    if not connector.should_update_logs and first_or_last(trainer):
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
