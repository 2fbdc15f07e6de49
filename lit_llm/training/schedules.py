"""Learning-rate multipliers as functions of the optimizer step: no state, so a resumed run cannot be off by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from lit_llm.errors import UserError

Schedule = Literal["wsd", "cosine", "constant"]


def lr_multiplier(kind: Schedule, steps: int, *, warmup: float, decay: float, final: float) -> Callable[[int], float]:
    """The multiplier of the base learning rate at optimizer step 0, 1, ..., steps - 1.

    A linear warmup over ``warmup * steps`` steps, then: "wsd" holds and falls linearly over the last ``decay * steps``
    (warmup-stable-decay, arXiv:2404.06395), "cosine" falls by half a cosine over all the rest (``decay`` unused),
    "constant" holds. ``final`` is the multiplier at the end of the fall. Steps beyond the horizon stay there.

    Args:
        steps: horizon in optimizer steps.
        warmup, decay: fractions of the horizon.
        final: fraction of the base learning rate.
    """
    if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + (decay if kind == "wsd" else 0) <= 1):
        raise UserError(f"warmup={warmup} and decay={decay} are fractions of the run and must fit into it")
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
