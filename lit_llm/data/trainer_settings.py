"""Trainer settings that the data modules set, and user settings that they refuse.

A run is one epoch of the loader, and the data module decides its length. The settings that the data
modules set are

- ``max_epochs`` (1), ``accumulate_grad_batches``, ``val_check_interval`` and
  ``check_val_every_n_epoch``: only where they have the Trainer's default. A value that means
  something else is honoured (``val_check_interval``) or refused.
- ``limit_train_batches``: a fraction, and the value of ``fast_dev_run``, are rounded to whole
  optimizer steps.

A setting that would do nothing in a run of one epoch is refused too. In Python a default cannot be
told from the same value given by the user: ``max_epochs=1000``, ``accumulate_grad_batches=1`` and
``val_check_interval=1.0`` count as not given. On the command line `check_settings` sees the
difference.

A Trainer may be used for several fits. The user's value of each setting is therefore stored beside
ours, so that the second fit does not take our value for the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.errors import UserError

_ours: WeakKeyDictionary[L.Trainer, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
"""Trainer -> setting -> (the user's value, our value)."""


def given(trainer: Any, name: str) -> Any:
    """The user's value of the Trainer's attribute ``name``."""
    now = getattr(trainer, name, None)
    users, ours = _ours.get(trainer, {}).get(name, (now, now))
    return users if type(now) is type(ours) and now == ours else now


def replace(trainer: Any, name: str, value: Any) -> None:
    """Set the Trainer's attribute ``name`` to ``value`` and store the user's value."""
    _ours.setdefault(trainer, {})[name] = (given(trainer, name), value)
    setattr(trainer, name, value)


def check_length(trainer: Any, steps: int, length: str) -> None:
    """Refuse settings that contradict the length of the run or its order of samples.

    Args:
        trainer: the Trainer.
        steps: optimizer steps of the run.
        length: the setting that determines the length, with its value: "data.tokens=1000".

    Raises:
        UserError: names the setting and what to set instead.
    """
    epochs = trainer.max_epochs
    if epochs not in (None, 1, _default_epochs(trainer)):
        raise UserError(
            f"trainer.max_epochs={epochs}: the length of a run is {length}, and a run is one "
            f"epoch of the Trainer; leave max_epochs out and change {length.partition('=')[0]}"
        )
    if (trainer.min_epochs or 0) > 1:
        raise UserError(
            f"trainer.min_epochs={trainer.min_epochs}: a run is one epoch; leave min_epochs out"
        )
    if (trainer.min_steps or 0) > steps:
        raise UserError(
            f"trainer.min_steps={trainer.min_steps} is more than the run's {steps} steps, which "
            f"{length} makes: lower it, or give more data"
        )
    if trainer.overfit_batches:
        raise UserError(
            f"trainer.overfit_batches={trainer.overfit_batches}: the order of the samples is the "
            "data module's and does not repeat a few batches; give data.sources a small file and "
            "several passes over it"
        )
    if given(trainer, "check_val_every_n_epoch") not in (None, 1):
        raise UserError(
            f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}: a run is one "
            "epoch; set data.validate_every, in optimizer steps"
        )
    if every := trainer.reload_dataloaders_every_n_epochs:
        raise UserError(
            f"trainer.reload_dataloaders_every_n_epochs={every}: a run is one epoch, whose "
            "loaders are made once; leave it out"
        )
    refuse_accumulation_schedules(trainer.callbacks)
    if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):
        raise UserError(
            "StochasticWeightAveraging averages where epochs begin, and a run is one epoch: the "
            "model would end with its first weights; take lightning's EMAWeightAveraging or "
            "WeightAveraging"
        )
    if trainer.max_steps > steps and not trainer.fast_dev_run:
        rank_zero_warn(
            f"trainer.max_steps={trainer.max_steps} is beyond the end of the run: {length} makes "
            f"{steps} steps"
        )


def refuse_accumulation_schedules(callbacks: Iterable[Any]) -> None:
    """Refuse callbacks that change the tokens of an optimizer step during the run."""
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise UserError(
            "trainer.callbacks: GradientAccumulationScheduler changes the tokens of a step, "
            "which data.global_batch_tokens decides: leave it out"
        )


def _default_epochs(trainer: Any) -> int:
    """Lightning's value if ``max_epochs`` is not set, according to its manual."""
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)
    return -1 if timed or trainer.max_steps != -1 else 1000


def limit_batches(trainer: Any, steps: int, accumulation: int) -> int:
    """Make ``trainer.limit_train_batches`` a multiple of an optimizer step.

    A fraction is rounded down to whole steps, but to one step at least. ``fast_dev_run`` counts
    optimizer steps.

    Returns:
        The number of micro-batches to train on.

    Raises:
        UserError: a number of micro-batches that ends within an optimizer step.
    """
    limit, batches = given(trainer, "limit_train_batches"), steps * accumulation
    if trainer.fast_dev_run:
        replace(trainer, "limit_train_batches", limit * accumulation)
    elif isinstance(limit, float) and 0 < limit < 1:
        replace(trainer, "limit_train_batches", max(1, int(limit * steps)) * accumulation)
    elif isinstance(limit, int) and limit % accumulation and limit < batches:
        below = limit // accumulation * accumulation
        raise UserError(
            f"trainer.limit_train_batches={limit} ends within an optimizer step, which takes "
            f"{accumulation} micro-batches: nearest are "
            f"{below or ''}{' and ' if below else ''}{below + accumulation}"
        )
    limit = trainer.limit_train_batches
    return batches if isinstance(limit, float) and limit else min(batches, int(limit))
