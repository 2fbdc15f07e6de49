"""When a validation is the best so far: the lowest value of one metric."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class BestScore:
    """Follows the validations of a fit.

    Attributes:
        pending: a validation has ended whose weights are not saved yet.
    """

    def __init__(self) -> None:
        self.pending = False
        self._told = False

    def validated(self, trainer: L.Trainer) -> None:
        """Note that a validation has ended. What training starts from needs no copy."""
        self.pending = (
            trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step > 0
        )

    def improved(self, trainer: L.Trainer, monitor: str | None, best: float | None) -> float | None:
        """The last validation's value of ``monitor`` if it is below ``best``, else None; nothing is
        pending then. All processes call it."""
        self.pending = False
        if monitor is None:
            return None
        if monitor not in trainer.callback_metrics:
            self._tell_of_no_metric(trainer, monitor)
            return None
        # The first rank's value: ranks that disagreed would wait for each other in the save.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[monitor])))
        return score if math.isfinite(score) and (best is None or score < best) else None

    def _tell_of_no_metric(self, trainer: L.Trainer, monitor: str) -> None:
        if self._told:
            return
        self._told = True
        logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
        rank_zero_warn(
            f"checkpoint.monitor={monitor}: no such metric was logged, so there is no "
            f"best.ckpt; logged: {logged}"
        )
