"""Of which step the weights in ``final/`` are: the best step's, or the last step's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_llm.errors import UserError

Final = bool | Literal["best", "last"]
"""Whether to write ``final/``, and of which step; True chooses, see `FinalWeights`."""


@dataclass(frozen=True)
class Origin:
    """Of which step some weights are.

    Attributes:
        global_step: step of the weights.
        last_step: step at which training ended.
        monitor: metric by which the step was chosen; None if it is the last step.
        mode: whether the lowest ("min") or the highest ("max") value is the best.
        score: the metric's value at the step.
    """

    global_step: int
    last_step: int
    monitor: str | None = None
    mode: str = "min"
    score: float | None = None

    def __str__(self) -> str:
        if self.monitor is None:
            return f"step {self.global_step:,}, the last one"
        best = "lowest" if self.mode == "min" else "highest"
        after = self.last_step - self.global_step
        ends = f"{after:,} step{'s' * (after != 1)} before the end" if after else "the last one"
        where = f"where {self.monitor} was {best} ({self.score:.4f})"
        return f"step {self.global_step:,}, {where}, {ends}"


class FinalWeights:
    """Decides of which step ``final/`` is, and loads its weights into the module.

    Args:
        final: whether to write ``final/``, and of which step, see `takes_best`.
        monitor: metric by which a checkpoint is the best, or None.
        mode: whether its lowest ("min") or its highest ("max") value is the best.

    Attributes:
        origin: of which step the module's weights are, once training has ended; else None.

    Raises:
        UserError: ``final`` is another value, or "best" without a monitor.
    """

    def __init__(self, final: Final, monitor: str | None, mode: str):
        if final not in (True, False, "best", "last"):
            raise UserError(f"checkpoint.final={final}: must be true, false, best or last")
        if final == "best" and monitor is None:
            raise UserError(
                "checkpoint.final=best: set checkpoint.monitor, which says what is best"
            )
        self.origin: Origin | None = None
        self._final, self._monitor, self._mode = final, monitor, mode

    def takes_best(self, trainer: L.Trainer) -> bool:
        """Whether ``final/`` is of the best step.

        With True it is for runs of more than one pass over the data (``epochs`` of the data
        module), because later passes learn the examples by heart. Averaged weights are those of
        the end.

        Raises:
            UserError: "best" is asked for beside a callback that averages weights.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        averages = [c for c in callbacks if isinstance(c, WeightAveraging)]
        if averages and self._final == "best":
            raise UserError(
                f"checkpoint.final=best: {type(averages[0]).__name__} puts averaged weights into "
                "final/; leave one of them out"
            )
        if self._final is not True:
            return self._final == "best"
        several = getattr(getattr(trainer, "datamodule", None), "epochs", 1.0) > 1
        return several and not averages and self._monitor is not None

    def load(self, trainer: L.Trainer, best: Path, score: float | None) -> None:
        """Load the weights that ``final/`` gets, set ``origin``, and tell it; only once.

        All processes must call this.

        Args:
            trainer: its step is the last one.
            best: file of the best checkpoint, which may be missing.
            score: the best value of the monitor; None if there is none.
        """
        if self.origin is not None:
            return
        last = trainer.global_step
        self.origin = Origin(last, last)
        if not self.takes_best(trainer):
            return
        if not trainer.strategy.broadcast(score is not None and best.exists()):
            rank_zero_warn(
                f"final/: there is no best checkpoint by checkpoint.monitor={self._monitor}, so it "
                "holds the weights of the last step"
            )
            return
        saved = trainer.strategy.load_checkpoint(best, weights_only=False)
        self.origin = Origin(int(saved["global_step"]), last, self._monitor, self._mode, score)
        if self.origin.global_step != last:
            # Not strict, because a checkpoint with LoRA does not contain the base.
            trainer.strategy.load_model_state_dict(saved, strict=False)
            rank_zero_info(f"final/: {self.origin}; checkpoint.final=last takes the last step")
