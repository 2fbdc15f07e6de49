"""SpikeGuard: an optimizer step whose gradient is broken or far out changes nothing, and training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.sharded import total_norm
from lit_llm.training.callbacks.borders import at_border, logs_now
from lit_llm.training.callbacks.jsonl import keep_until
from lit_llm.training.optimizers import MuonAdamW


class SpikeGuard(L.Callback):
    """Skips steps whose gradient norm is not finite, or ``sigmas`` standard deviations above its recent mean.

    A skipped step leaves weights, momenta and step counts as they were; the learning rate's schedule goes on. The
    decision is taken on the device and handed to the optimizer as its ``found_inf`` (fused Adam's and `MuonAdamW`'s):
    nothing waits for it. Other optimizers lose the step's gradients instead, which costs one synchronisation a step.
    Where steps are logged, new skips are told and appended to ``events.jsonl`` in the run folder.

    Works with any LightningModule under automatic optimization; data-parallel ranks see one gradient and decide alike.

    Args:
        sigmas: how far above the mean is far out. The scale of the norms is that of their logarithm.
        window: norms that mean and deviation are taken of; until half of them are there, only broken ones count.
        patience: skips in a row after which training stops.

    Raises:
        UserError: ``patience`` steps in a row were skipped, told at the next logged step; settings out of range.
    """

    def __init__(self, sigmas: float = 6.0, window: int = 128, patience: int = 20):
        if sigmas <= 0 or window < 4 or patience < 1:
            raise UserError("SpikeGuard: need sigmas > 0, window >= 4 and patience >= 1")
        self.sigmas, self.window, self.patience = sigmas, window, patience
        self._norms: Tensor | None = None  # logarithms, a ring
        self._counts: Tensor | None = None  # steps seen, steps skipped, skipped in a row
        self._saved: dict[str, Tensor] = {}
        self._told = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up where a checkpoint left off."""
        device = pl_module.device
        self._norms = self._saved.get("norms", torch.zeros(self.window)).to(device)
        self._counts = self._saved.get("counts", torch.zeros(3, dtype=torch.int64)).to(device)
        self._told = int(self._counts[1])
        self.file = Path(trainer.default_root_dir) / "events.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Decide, from the gradient as it is before clipping."""
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        skip = self._decide(total_norm(p.grad for p in params if p.grad is not None))
        inner: Any = getattr(optimizer, "_optimizer", optimizer)  # of Lightning's wrapper
        if _reads_found_inf(inner):
            inner.found_inf = skip.float()
        elif bool(skip):
            for p in params:
                p.grad = None

    def _decide(self, norm: Tensor) -> Tensor:
        """Whether to skip, a bool scalar on the device; the norm is remembered."""
        assert self._norms is not None and self._counts is not None
        seen, _, in_a_row = self._counts
        filled = torch.arange(self.window, device=norm.device) < seen
        number = filled.sum().clamp(min=1)
        mean = (self._norms * filled).sum() / number
        deviation = (((self._norms - mean) * filled).square().sum() / number).sqrt()
        limit = mean + self.sigmas * deviation.clamp(min=0.05)  # equal norms must not make every change an outlier
        value = norm.clamp(min=1e-20).log()
        skip = ~torch.isfinite(norm) | ((seen >= self.window // 2) & (value > limit))
        # A spike is remembered as what is just not one: if norms stay up, the limit follows.
        value = torch.where(torch.isfinite(norm), torch.minimum(value, torch.where(skip, limit, value)), mean)
        self._norms[seen % self.window] = value
        self._counts.copy_(torch.stack([seen + 1, self._counts[1] + skip, (in_a_row + 1) * skip]))
        return skip

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell of skips, at the steps that are logged."""
        if not (at_border(trainer, batch_idx) and logs_now(trainer)):
            return
        assert self._counts is not None
        _, skipped, in_a_row = self._counts.tolist()
        if skipped > self._told:
            new, self._told = skipped - self._told, skipped
            rank_zero_warn(f"step {trainer.global_step}: SpikeGuard skipped {new} of the last steps, {skipped} in all")
            if trainer.is_global_zero:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a", encoding="utf-8") as file:
                    row = {"step": trainer.global_step, "event": "skipped", "steps": new, "in_all": skipped}
                    file.write(json.dumps(row) + "\n")
        if in_a_row >= self.patience:
            raise UserError(
                f"step {trainer.global_step}: SpikeGuard skipped {in_a_row} steps in a row; go on from an earlier "
                "checkpoint with a lower model.learning_rate"
            )

    def state_dict(self) -> dict[str, Any]:
        """The remembered norms and the counts."""
        return {} if self._norms is None else {"norms": self._norms.cpu(), "counts": self._counts.cpu()}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them when training starts; a window of another size begins anew."""
        if len(state_dict.get("norms", ())) == self.window:
            self._saved = state_dict


def _reads_found_inf(optimizer: Any) -> bool:
    """Whether ``step`` leaves everything as it is when ``found_inf`` is 1: torch's mark of fused optimizers."""
    return isinstance(optimizer, MuonAdamW) or bool(getattr(optimizer, "_step_supports_amp_scaling", False))
