"""BestScore: finds the validation with the best value of a metric."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class BestScore:
    """Watches the validations of a fit.

    Attributes:
        pending: whether a validation has ended whose weights are not saved yet.
    """

    def __init__(self) -> None:
        self.pending = False
        self._warned = False

    def validated(self, trainer: L.Trainer) -> None:
        """Record that a validation has ended. The weights before the first step are not saved."""
        self.pending = (
            trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step > 0
        )

    def improved(
        self, trainer: L.Trainer, monitor: str | None, best: float | None, mode: str = "min"
    ) -> float | None:
        """The last validation's value of ``monitor`` if it is better than ``best``, else None.

        Better is lower with the mode "min" and higher with "max". It clears ``pending``. All
        processes must call this.
        """
        self.pending = False
        if monitor is None:
            return None
        if monitor not in trainer.callback_metrics:
            self._warn_about_missing_metric(trainer, monitor)
            return None
        # All ranks use the first rank's value. Otherwise some ranks could save and wait for ranks
        # that do not.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[monitor])))
        if not math.isfinite(score):
            return None
        better = best is None or (score < best if mode == "min" else score > best)
        return score if better else None

    def _warn_about_missing_metric(self, trainer: L.Trainer, monitor: str) -> None:
        if self._warned:
            return
        self._warned = True
        logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
        rank_zero_warn(
            f"checkpoint.monitor={monitor}: no such metric is known after the validation of step "
            f"{trainer.global_step}, so it gives no best.ckpt; known: {logged}"
        )
