"""Learning-rate schedules that depend only on the optimizer step.

They have no other state, so the schedule of a resumed run cannot be off by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from lit_llm.errors import UserError

Schedule = Literal["wsd", "cosine", "linear", "constant"]


def lr_multiplier(
    kind: Schedule, steps: int, *, warmup: float, decay: float, final: float
) -> Callable[[int], float]:
    """The multiplier of the base learning rate at optimizer step 0, 1, ..., steps - 1.

    All schedules begin with a linear warmup over ``warmup * steps`` steps. Then:

    - "wsd" (warmup-stable-decay, arXiv:2404.06395) is constant, and decays linearly over the last
      ``decay * steps`` steps;
    - "cosine" decays as half a cosine over all remaining steps (``decay`` is unused);
    - "linear" decays linearly over all remaining steps (``decay`` is unused);
    - "constant" is constant.

    ``final`` is the multiplier at the end of the decay. Steps beyond the horizon keep it.

    Args:
        kind: the schedule.
        steps: horizon in optimizer steps.
        warmup, decay: fractions of the horizon.
        final: fraction of the base learning rate.

    Raises:
        UserError: warmup and decay do not fit into the horizon.
    """
    if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + (decay if kind == "wsd" else 0) <= 1):
        raise UserError(
            f"warmup={warmup} and decay={decay} are fractions of the run and must fit into it"
        )
    warmup_steps = round(warmup * steps)
    falling = {"wsd": round(decay * steps), "constant": 0}
    fall_steps = falling.get(kind, steps - warmup_steps)

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
    """Base rates times a multiplier of the step. A checkpoint restores only the step.

    torch would also restore the base rates and the current rates. A resumed run would then keep the
    old rates, whatever its configuration says, and would use them one step longer than the old
    schedule.
    """

    def start_at(self, step: int) -> None:
        """Set the position to ``step`` optimizer steps."""
        self.load_state_dict({"last_epoch": step, "lr_lambdas": [None] * len(self.lr_lambdas)})

    def change(self, factor: float, multiplier: Callable[[int], float]) -> None:
        """Multiply the base rates by ``factor``, and use another multiplier of the step."""
        self.base_lrs = [base * factor for base in self.base_lrs]
        self.lr_lambdas = [multiplier] * len(self.base_lrs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, and set the optimizer's rates for this step."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [
            base * factor(self.last_epoch)
            for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def keep_settings(optimizer: torch.optim.Optimizer) -> None:
    """Make ``optimizer.load_state_dict`` restore only momenta and step counts.

    Learning rates, weight decay and other settings of the parameter groups stay as they are.
    """

    def with_current_settings(
        optimizer: torch.optim.Optimizer, saved: dict[str, Any]
    ) -> dict[str, Any]:
        pairs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
        return {
            **saved,
            "param_groups": [{**now, "params": before["params"]} for now, before in pairs],
        }

    optimizer.register_load_state_dict_pre_hook(with_current_settings)
