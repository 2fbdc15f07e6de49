"""Learning-rate multipliers as functions of the optimizer step: no state, so a resumed run cannot
be off by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from lit_llm.errors import UserError

Schedule = Literal["wsd", "cosine", "constant"]


def lr_multiplier(
    kind: Schedule, steps: int, *, warmup: float, decay: float, final: float
) -> Callable[[int], float]:
    """The multiplier of the base learning rate at optimizer step 0, 1, ..., steps - 1.

    A linear warmup over ``warmup * steps`` steps, then: "wsd" holds and falls linearly over the
        last ``decay * steps``
    (warmup-stable-decay, arXiv:2404.06395), "cosine" falls by half a cosine over all the rest
    (``decay`` unused), "constant" holds. ``final`` is the multiplier at the end of the fall. Steps
    beyond the horizon stay there.

    Args:
        steps: horizon in optimizer steps.
        warmup, decay: fractions of the horizon.
        final: fraction of the base learning rate.
    """
    if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + (decay if kind == "wsd" else 0) <= 1):
        raise UserError(
            f"warmup={warmup} and decay={decay} are fractions of the run and must fit into it"
        )
    warmup_steps = round(warmup * steps)
    fall_steps = {"wsd": round(decay * steps), "cosine": steps - warmup_steps, "constant": 0}[kind]

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        left = max(0, steps - step)
        if left >= fall_steps or fall_steps == 0:
            return 1.0
        share = left / fall_steps
        if kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return final + (1 - final) * share

    return multiplier


class StepSchedule(LambdaLR):
    """Base rates times a multiplier of the step, of which a checkpoint restores the step alone.

    torch restores the base rates and the rates too, so that a resumed run would keep the old ones
    whatever its configuration says, one step longer than the old schedule at that.
    """

    def start_at(self, step: int) -> None:
        """Be where a run of ``step`` optimizer steps is."""
        self.load_state_dict({"last_epoch": step, "lr_lambdas": [None] * len(self.lr_lambdas)})

    def change(self, factor: float, multiplier: Callable[[int], float]) -> None:
        """Multiply the base rates by ``factor``, and follow another multiplier of the step."""
        self.base_lrs = [base * factor for base in self.base_lrs]
        self.lr_lambdas = [multiplier] * len(self.base_lrs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step, and give the optimizer the rates of it."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [
            base * factor(self.last_epoch)
            for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def keep_settings(optimizer: torch.optim.Optimizer) -> None:
    """Have ``optimizer.load_state_dict`` restore momenta and counts, and leave rates, decay and the
    like alone."""

    def with_ours(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
        return {
            **saved,
            "param_groups": [{**now, "params": before["params"]} for now, before in pairs],
        }

    optimizer.register_load_state_dict_pre_hook(with_ours)
