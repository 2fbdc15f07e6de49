"""Ends a run of several passes when what `Checkpoint` monitors no longer becomes better."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.training.callbacks.checkpoint import Checkpoint


def early_stopping(trainer: L.Trainer, patience: int | None, epochs: float) -> list[EarlyStopping]:
    """The callback that ends the run; none if the Trainer has one, or for a single pass.

    Args:
        trainer: its `Checkpoint` says what is monitored; without one it is val_loss.
        patience: validations in a row without a better value; None: the run is never ended.
        epochs: passes over the data.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    own = any(isinstance(callback, EarlyStopping) for callback in callbacks)
    if patience is None or epochs <= 1 or own:
        return []
    monitor, mode = next(
        ((c.monitor, c.mode) for c in callbacks if isinstance(c, Checkpoint) and c.monitor),
        ("val_loss", "min"),
    )
    # Not strict: a metric may be measured less often than the validation loss.
    return [
        EarlyStopping(monitor, mode=mode, patience=patience, check_on_train_epoch_end=False,
                      check_finite=False, strict=False)
    ]  # fmt: skip


def tell_of_stop(trainer: L.Trainer) -> None:
    """Tell that the run was ended early, if it was; for the end of training."""
    stops: Any = trainer.early_stopping_callback
    if stops is None or stops.wait_count < stops.patience:
        return
    best = "lowest" if stops.mode == "min" else "highest"
    rank_zero_info(
        f"stopped at step {trainer.global_step}: {stops.monitor} was {best} "
        f"({float(stops.best_score):.4f}) {stops.wait_count} validations ago; "
        "checkpoints/best.ckpt has the weights of then (model.patience)"
    )
