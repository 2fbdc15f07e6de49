"""Cost of failures in a long run: failure rate, checkpoint interval, share of useful time.

Formulas: Young (1974) and Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps" (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GPU_HOURS_PER_FAILURE = 16384 * 54 * 24 / 419
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100.

Source: arXiv:2407.21783, section 3.3.4.
"""
RESTART_HOURS = 10 / 60
"""Time from a failure to the next step: detection, replacing the node, start, loading."""
PAUSE_HOURS = 30 / 3600
"""Time that training pauses for a checkpoint."""


@dataclass(frozen=True)
class Goodput:
    """Use of time of a run on unreliable machines."""

    mean_hours_between_failures: float
    checkpoint_hours: float
    """Interval between two checkpoints that loses the least time."""
    share: float
    """Useful hours divided by all hours."""


def goodput(gpus: float) -> Goodput:
    """Expected goodput with Poisson failures and checkpoints at Daly's interval.

    A segment of t useful hours and its checkpoint pause take M e^(restart/M) (e^((t + pause)/M) -
    1) hours on average, including repetitions after failures. M is the mean time between failures
    of ``gpus`` GPUs that stop together (Daly, eq. 13: a failure during the restart starts the
    restart again).
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
