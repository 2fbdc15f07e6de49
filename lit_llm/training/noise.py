"""Dropout noise that depends only on the step, and leaves all other random streams unchanged."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch


class StepNoise:
    """Seeds torch's global generators for one micro-batch, and then restores their states.

    The unseeded generators cannot be used: loaders and validations draw from them too, and in a
    resumed run at other times. The seeded state cannot stay either: later draws, for example the
    shuffle of a user's ``DataLoader``, would give the same numbers again and again. States are read
    and set on the host, so nothing waits for the device.
    """

    def __init__(self) -> None:
        self._states: list[tuple[Any, torch.Tensor]] = []

    def start(self, device: torch.device, micro_batch: int, rank: int) -> None:
        """Seed the generators of the CPU and of ``device``.

        Args:
            device: the device that draws the noise.
            micro_batch: number of the micro-batch in the whole run.
            rank: data-parallel rank of this process.
        """
        # For an interrupted micro-batch `stop` was not called.
        self.stop()
        # The argument of `seed_everything`.
        seed = os.environ.get("PL_GLOBAL_SEED")
        number_given = int(seed) if seed is not None and seed.isdecimal() else torch.initial_seed()
        key = (number_given, micro_batch, rank)
        number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        # torch.cuda and torch.mps have the same three functions as torch.random for the CPU.
        sources: list[Any] = [torch.random]
        if device.type != "cpu":
            sources.append(torch.get_device_module(device))
        self._states = [(source, source.get_rng_state()) for source in sources]
        torch.default_generator.manual_seed(number)
        for source in sources[1:]:
            source.manual_seed(number)

    def stop(self) -> None:
        """Restore the states of the generators."""
        for source, state in self._states:
            source.set_rng_state(state)
        self._states = []
