"""Noise (dropout) that is a function of the step, drawn without touching anybody else's random
streams."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch


class StepNoise:
    """Seeds torch's global generators for one micro-batch, and gives them back as they were.

    A generator's state would not do as it is: loaders and validations draw from it too, at other
    times in a resumed run. Left seeded it would not do either: whatever draws from it afterwards,
    the shuffle of a user's ``DataLoader`` say, would draw the same again and again. States are read
    and set on the host; nothing waits for the device.
    """

    def __init__(self) -> None:
        self._states: list[tuple[Any, torch.Tensor]] = []

    def start(self, device: torch.device, micro_batch: int, rank: int) -> None:
        """Seed the generators of the CPU and of ``device``.

        Args:
            micro_batch: counted through the whole run.
            rank: which part of every batch this process has.
        """
        self.stop()  # an interrupted micro-batch had no end
        seed = os.environ.get("PL_GLOBAL_SEED")  # what `seed_everything` was given
        number_given = int(seed) if seed is not None and seed.isdecimal() else torch.initial_seed()
        key = (number_given, micro_batch, rank)
        number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        # torch.cuda and torch.mps have the three functions that torch has for the CPU.
        sources: list[Any] = [torch.random]
        if device.type != "cpu":
            sources.append(torch.get_device_module(device))
        self._states = [(source, source.get_rng_state()) for source in sources]
        torch.default_generator.manual_seed(number)
        for source in sources[1:]:
            source.manual_seed(number)

    def stop(self) -> None:
        """Set the generators back."""
        for source, state in self._states:
            source.set_rng_state(state)
        self._states = []
