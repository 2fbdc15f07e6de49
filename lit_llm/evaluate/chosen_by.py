"""Values of evaluations in the Trainer's ``callback_metrics``, by which `Checkpoint` may choose."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch


def set_values(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Set the values of this validation; they must be equal on all processes."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def drop_values(trainer: L.Trainer, prefix: str) -> None:
    """Remove the values of an earlier validation, whose names begin with ``prefix``.

    They would say that the weights of this validation are no better, which nobody measured.
    """
    for name in [name for name in trainer.callback_metrics if name.startswith(prefix)]:
        del trainer.callback_metrics[name]
