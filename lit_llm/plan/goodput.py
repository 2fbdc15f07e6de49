"""What failures cost a long run: how often it fails, how often to save, and what share of the time
trains.

Formulas: Young (1974) and Daly, "A higher order estimate of the optimum checkpoint interval for
    restart dumps" (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GPU_HOURS_PER_FAILURE = 16384 * 54 * 24 / 419
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv:2407.21783, section
3.3.4)."""
RESTART_HOURS = 10 / 60
"""From a failure to the first step again: noticing, replacing the node, starting, loading."""
PAUSE_HOURS = 30 / 3600
"""Training stands still this long for a checkpoint."""


@dataclass(frozen=True)
class Goodput:
    """How a run on unreliable machines spends its time."""

    mean_hours_between_failures: float
    checkpoint_hours: float
    """Training between two checkpoints that loses least."""
    share: float
    """Useful hours over all hours."""


def goodput(gpus: float) -> Goodput:
    """Expected goodput with failures as a Poisson process and checkpoints at Daly's interval.

    A segment of t useful hours and the pause for its checkpoint take, repeats after failures
    included, M e^(restart/M) (e^((t + pause)/M) - 1) hours on average, M being the mean time
    between failures of ``gpus`` that stop together (Daly, eq. 13: a failure during the restart
    begins it anew).
    """
    mean, pause = GPU_HOURS_PER_FAILURE / gpus, PAUSE_HOURS
    ratio = math.sqrt(pause / (2 * mean))
    # Daly's second-order interval (eq. 37); Young's sqrt(2 pause M) is its first term.
    interval = (
        mean
        if pause >= 2 * mean
        else math.sqrt(2 * pause * mean) * (1 + ratio / 3 + ratio**2 / 9) - pause
    )
    taken = mean * math.exp(RESTART_HOURS / mean) * math.expm1((interval + pause) / mean)
    return Goodput(mean, interval, interval / taken)
