"""SpikeGuard: skips optimizer steps whose gradient norm is not finite or is an outlier."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.io.jsonl import keep_until
from lit_llm.models.parallel.sharded import total_norm
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.training.callbacks.checkpoint import Checkpoint
from lit_llm.training.callbacks.optimizer_steps import is_step_end, logs_now
from lit_llm.training.optimizers import MuonAdamW

RANGES: dict[str, Range] = {
    "sigmas": positive(1e6), "window": Range(4, 1e6), "patience": Range(1, 1e9),
    "rollbacks": Range(0, 1e6),
}  # fmt: skip
"""Ranges of the numbers of `SpikeGuard`."""


class SpikeGuard(L.Callback):
    """Skips optimizer steps whose gradient norm is not finite or is an outlier.

    An outlier is a norm more than ``sigmas`` standard deviations above the recent mean. A skipped
    step leaves weights, momenta and step counts as they were; the learning-rate schedule continues.
    The decision is made on the device and passed to the optimizer as its ``found_inf`` (fused Adam
    and `MuonAdamW`), so nothing waits for it. For other optimizers the gradients of the step are
    removed, which costs one synchronisation per step. At logged steps new skips are reported and
    appended to ``events.jsonl`` in the run folder.

    After ``patience`` skips in a row, weights and optimizer are restored from a checkpoint of the
    run's `Checkpoint`: the newest whole one that is older than the weights whose gradients are
    skipped. Training continues from there with the next data, as PaLM's did (arXiv:2204.02311,
    section 5.1). Newer checkpoints are removed.

    The callback works with any LightningModule under automatic optimization. Data-parallel ranks
    see the same gradient and make the same decision.

    Args:
        sigmas: number of standard deviations above the mean from which a norm is an outlier, on the
            scale of the logarithm of the norms. None: only norms that are not finite are skipped.
        window: number of norms for mean and deviation. Until there are half as many, only norms
            that are not finite are skipped.
        patience: number of skips in a row after which training goes back, at the next logged step.
        rollbacks: how often training may go back. After that it stops with an error.

    Raises:
        UserError: ``patience`` steps in a row were skipped, and there is no checkpoint to go back
            to or training already went back ``rollbacks`` times; or settings are out of range.
    """

    def __init__(
        self, sigmas: float | None = 6.0, window: int = 128, patience: int = 20, rollbacks: int = 2
    ):
        check_ranges(locals(), RANGES, "spike_guard.")
        self.sigmas, self.window, self.patience, self.rollbacks = (
            sigmas,
            window,
            patience,
            rollbacks,
        )
        self._norms: Tensor | None = None  # logarithms, as a ring buffer
        self._counts: Tensor | None = None  # steps seen, steps skipped, skipped in a row
        self._saved: dict[str, Tensor] = {}
        self._reported = 0
        self._rollbacks_done = 0
        self._last_rollback = (-1, -1)  # (step at which, step of the checkpoint)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore norms and counts from the checkpoint, if any."""
        device = pl_module.device
        self._norms = self._saved.get("norms", torch.zeros(self.window)).to(device)
        self._counts = self._saved.get("counts", torch.zeros(3, dtype=torch.int64)).to(device)
        self._reported = int(self._saved.get("told", self._counts[1]))
        self._rollbacks_done = int(self._saved.get("went_back", 0))
        at, to = self._saved.get("last_return", torch.tensor([-1, -1])).tolist()
        self._last_rollback = at, to
        if (checkpoint := _checkpoint_of(trainer)) is not None:
            checkpoint.unchanged_since = partial(self._unchanged_since, trainer)
        self.file = Path(trainer.default_root_dir) / "events.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Decide from the gradient before clipping whether to skip the step."""
        params = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        skip = self._decide(total_norm(p.grad for p in params if p.grad is not None))
        inner: Any = optimizer
        if isinstance(inner, LightningOptimizer):
            inner = inner.optimizer
        if _reads_found_inf(inner):
            inner.found_inf = skip.float()
        elif bool(skip):
            for p in params:
                p.grad = None

    def _decide(self, norm: Tensor) -> Tensor:
        """Whether to skip the step, a bool scalar on the device. It also records the norm."""
        assert self._norms is not None and self._counts is not None
        # Mean and deviation of the filled places of the ring buffer. All operations stay on the
        # device and have fixed shapes.
        seen, _, in_a_row = self._counts
        places = torch.arange(self.window, device=norm.device)
        filled = places < seen
        number = filled.sum().clamp(min=1)
        mean = (self._norms * filled).sum() / number
        deviation = (((self._norms - mean) * filled).square().sum() / number).sqrt()
        far_out = float("inf") if self.sigmas is None else self.sigmas
        # The deviation has a lower bound: after equal norms not every change is an outlier.
        limit = mean + far_out * deviation.clamp(min=0.05)
        value = norm.clamp(min=1e-20).log()
        skip = ~torch.isfinite(norm) | ((seen >= self.window // 2) & (value > limit))
        # A spike is recorded as the limit, the largest norm that is no spike. If norms stay high,
        # the limit rises with them. A norm that is not finite is recorded as the mean.
        value = torch.where(
            torch.isfinite(norm), torch.minimum(value, torch.where(skip, limit, value)), mean
        )
        # `torch.where` instead of an index, because the host would have to read a tensor index.
        self._norms.copy_(torch.where(places == seen % self.window, value, self._norms))
        self._counts.copy_(torch.stack([seen + 1, self._counts[1] + skip, (in_a_row + 1) * skip]))
        return skip

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """At logged steps, report skips, and go back after too many of them."""
        if is_step_end(trainer, batch_idx) and logs_now(trainer):
            in_a_row = self._report(trainer)
            if in_a_row >= self.patience:
                self._go_back(trainer, pl_module, in_a_row)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the skips since the last logged step."""
        self._report(trainer)

    def _report(self, trainer: L.Trainer) -> int:
        """Report new skips, and return the number of steps skipped in a row."""
        assert self._counts is not None
        _, skipped, in_a_row = self._counts.tolist()
        if skipped > self._reported:
            new, self._reported = skipped - self._reported, skipped
            rank_zero_warn(
                f"step {trainer.global_step}: SpikeGuard skipped {new} of the last steps, "
                f"{skipped} in all"
            )
            self._write(trainer, {"event": "skipped", "steps": new, "in_all": skipped})
        return in_a_row

    def _write(self, trainer: L.Trainer, event: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.global_step, **event}) + "\n")

    def _unchanged_since(self, trainer: L.Trainer) -> int | None:
        """The step that produced the current weights, if later steps were skipped, else None."""
        assert self._counts is not None
        in_a_row = int(self._counts[2])
        if not in_a_row:
            return None
        # If no step succeeded after a rollback, the weights are those of its checkpoint.
        since = trainer.global_step - in_a_row
        at, to = self._last_rollback
        return to if since == at else since

    def _go_back(self, trainer: L.Trainer, pl_module: L.LightningModule, in_a_row: int) -> None:
        """Restore weights and optimizer from before the skipped steps.

        Step number, data and schedule continue.
        """
        said = f"step {trainer.global_step}: SpikeGuard skipped {in_a_row} steps in a row"
        checkpoint, since = _checkpoint_of(trainer), self._unchanged_since(trainer)
        assert since is not None
        found = None if checkpoint is None else checkpoint.newest_whole(trainer, before=since)
        if checkpoint is None or found is None or self._rollbacks_done >= self.rollbacks:
            often = (
                f" and went back {self._rollbacks_done} times already"
                if self._rollbacks_done >= self.rollbacks
                else ""
            )
            mend = f"go on from --ckpt_path {found}"
            if found is None:
                mend = (
                    f"no whole checkpoint is older than the weights, which step {since} made: "
                    "start again"
                )
            raise UserError(f"{said}{often}; {mend} with a lower model.learning_rate")
        rank_zero_warn(
            f"{said}: back to the weights of {found.name}; training continues with the next data"
        )
        saved = trainer.strategy.load_checkpoint(found, weights_only=False)
        # Not strict, because a checkpoint with LoRA does not contain the base.
        trainer.strategy.load_model_state_dict(saved, strict=False)
        trainer.strategy.load_optimizer_state_dict(saved)
        # The learning rates are those of the schedule, not those of the checkpoint.
        for scheduler in trainer.lr_scheduler_configs:
            rates = scheduler.scheduler.get_last_lr()
            for group, rate in zip(scheduler.scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        assert self._counts is not None and self._norms is not None
        checkpoint.forget(trainer, since)
        self._rollbacks_done += 1
        self._last_rollback = trainer.global_step, saved["global_step"]
        # The norms of the discarded weights are no reference for the restored ones.
        self._counts[0] = self._counts[2] = 0
        self._norms.zero_()
        self._write(trainer, {"event": "rolled back", "to": found.name})

    def state_dict(self) -> dict[str, Any]:
        """Recorded norms and counts."""
        if self._norms is None or self._counts is None:
            return {}
        return {
            "norms": self._norms.cpu(),
            "counts": self._counts.cpu(),
            "told": torch.tensor(self._reported),
            "went_back": torch.tensor(self._rollbacks_done),
            "last_return": torch.tensor(self._last_rollback),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts; a state of another window size is dropped."""
        if len(state_dict.get("norms", ())) == self.window:
            self._saved = state_dict


def _checkpoint_of(trainer: Any) -> Checkpoint | None:
    # Any, because the type of the Trainer does not declare its callbacks.
    return next(
        (callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)), None
    )


def _reads_found_inf(optimizer: Any) -> bool:
    """Whether the optimizer's ``step`` changes nothing if its ``found_inf`` is 1.

    The private attribute is torch's mark of fused optimizers.
    """
    return isinstance(optimizer, MuonAdamW) or bool(
        getattr(optimizer, "_step_supports_amp_scaling", False)
    )
