"""SpikeGuard: an optimizer step whose gradient is broken or far out changes nothing, and training
goes on."""

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
    """Skips steps whose gradient norm is not finite, or ``sigmas`` standard deviations above its
    recent mean.

    A skipped step leaves weights, momenta and step counts as they were; the learning rate's
    schedule goes on. The decision is taken on the device and handed to the optimizer as its
    ``found_inf`` (fused Adam's and `MuonAdamW`'s): nothing waits for it. Other optimizers lose the
    step's gradients instead, which costs one synchronisation a step. Where steps are logged, new
    skips are told and appended to ``events.jsonl`` in the run folder. After ``patience`` skips in a
    row weights and optimizer go back to the newest whole checkpoint of the run's `Checkpoint` that
    is older than the weights whose gradients are skipped, and training goes on from there with the
    data that comes next, as PaLM's did (arXiv:2204.02311, section 5.1). Newer checkpoints are
    removed.

    Works with any LightningModule under automatic optimization; data-parallel ranks see one
    gradient and decide alike.

    Args:
        sigmas: how far above the mean is far out. The scale of the norms is that of their
            logarithm. None: only norms that are not finite count.
        window: norms that mean and deviation are taken of; until half of them are there, only
            broken ones count.
        patience: skips in a row after which training goes back, at the next logged step.
        rollbacks: how often it may; then it stops.

    Raises:
        UserError: ``patience`` steps in a row were skipped and there is no checkpoint to go back
            to, or training went back ``rollbacks`` times already; settings out of range.
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
        self._norms: Tensor | None = None  # logarithms, a ring
        self._counts: Tensor | None = None  # steps seen, steps skipped, skipped in a row
        self._saved: dict[str, Tensor] = {}
        self._told = 0
        self._went_back = 0
        self._last_return = (-1, -1)  # at which step, to the weights of which

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up where a checkpoint left off."""
        device = pl_module.device
        self._norms = self._saved.get("norms", torch.zeros(self.window)).to(device)
        self._counts = self._saved.get("counts", torch.zeros(3, dtype=torch.int64)).to(device)
        self._told = int(self._saved.get("told", self._counts[1]))
        self._went_back = int(self._saved.get("went_back", 0))
        at, to = self._saved.get("last_return", torch.tensor([-1, -1])).tolist()
        self._last_return = at, to
        if (checkpoint := _checkpoint_of(trainer)) is not None:
            checkpoint.unchanged_since = partial(self._unchanged_since, trainer)
        self.file = Path(trainer.default_root_dir) / "events.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Decide, from the gradient as it is before clipping."""
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
        """Whether to skip, a bool scalar on the device; the norm is remembered."""
        assert self._norms is not None and self._counts is not None
        seen, _, in_a_row = self._counts
        places = torch.arange(self.window, device=norm.device)
        filled = places < seen
        number = filled.sum().clamp(min=1)
        mean = (self._norms * filled).sum() / number
        deviation = (((self._norms - mean) * filled).square().sum() / number).sqrt()
        far_out = float("inf") if self.sigmas is None else self.sigmas
        limit = mean + far_out * deviation.clamp(
            min=0.05
        )  # equal norms must not make every change an outlier
        value = norm.clamp(min=1e-20).log()
        skip = ~torch.isfinite(norm) | ((seen >= self.window // 2) & (value > limit))
        # A spike is remembered as what is just not one: if norms stay up, the limit follows.
        value = torch.where(
            torch.isfinite(norm), torch.minimum(value, torch.where(skip, limit, value)), mean
        )
        # Not by index: a tensor as one would be read by the host.
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
        """Tell of skips, at the steps that are logged, and go back after too many."""
        if is_step_end(trainer, batch_idx) and logs_now(trainer):
            in_a_row = self._tell(trainer)
            if in_a_row >= self.patience:
                self._go_back(trainer, pl_module, in_a_row)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell of skips since the last step that was logged."""
        self._tell(trainer)

    def _tell(self, trainer: L.Trainer) -> int:
        """Say which skips are new; returns how many steps in a row were skipped by now."""
        assert self._counts is not None
        _, skipped, in_a_row = self._counts.tolist()
        if skipped > self._told:
            new, self._told = skipped - self._told, skipped
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
        """The step that made the weights as they are, if steps were skipped since; None if the last
        one was not."""
        assert self._counts is not None
        in_a_row = int(self._counts[2])
        if not in_a_row:
            return None
        since = trainer.global_step - in_a_row
        at, to = self._last_return
        return to if since == at else since

    def _go_back(self, trainer: L.Trainer, pl_module: L.LightningModule, in_a_row: int) -> None:
        """Load weights and optimizer from before the skipped steps; step, data and schedule go
        on."""
        said = f"step {trainer.global_step}: SpikeGuard skipped {in_a_row} steps in a row"
        checkpoint, since = _checkpoint_of(trainer), self._unchanged_since(trainer)
        assert since is not None
        found = None if checkpoint is None else checkpoint.newest_whole(trainer, before=since)
        if checkpoint is None or found is None or self._went_back >= self.rollbacks:
            often = (
                f" and went back {self._went_back} times already"
                if self._went_back >= self.rollbacks
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
            f"{said}: back to the weights of {found.name}, on with the data that comes next"
        )
        saved = trainer.strategy.load_checkpoint(found, weights_only=False)
        trainer.strategy.load_model_state_dict(
            saved, strict=False
        )  # a checkpoint of LoRA leaves its base out
        trainer.strategy.load_optimizer_state_dict(saved)
        for (
            scheduler
        ) in trainer.lr_scheduler_configs:  # the rates are the schedule's, not the checkpoint's
            rates = scheduler.scheduler.get_last_lr()
            for group, rate in zip(scheduler.scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        assert self._counts is not None and self._norms is not None
        checkpoint.forget(trainer, since)
        self._went_back += 1
        self._last_return = trainer.global_step, saved["global_step"]
        self._counts[0] = self._counts[2] = (
            0  # the norms of the weights that went wrong are no measure
        )
        self._norms.zero_()
        self._write(trainer, {"event": "rolled back", "to": found.name})

    def state_dict(self) -> dict[str, Any]:
        """The remembered norms and the counts."""
        if self._norms is None or self._counts is None:
            return {}
        return {
            "norms": self._norms.cpu(),
            "counts": self._counts.cpu(),
            "told": torch.tensor(self._told),
            "went_back": torch.tensor(self._went_back),
            "last_return": torch.tensor(self._last_return),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them when training starts; a window of another size begins anew."""
        if len(state_dict.get("norms", ())) == self.window:
            self._saved = state_dict


def _checkpoint_of(
    trainer: Any,
) -> Checkpoint | None:  # the Trainer's type does not know its callbacks
    return next(
        (callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)), None
    )


def _reads_found_inf(optimizer: Any) -> bool:
    """Whether ``step`` leaves everything as it is when ``found_inf`` is 1: torch's mark of fused
    optimizers."""
    return isinstance(optimizer, MuonAdamW) or bool(
        getattr(optimizer, "_step_supports_amp_scaling", False)
    )
