"""Order of samples as a pure function of (seed, position), so that a run can resume anywhere.

Chunks are shuffled first, then the samples within a window of consecutive chunks. This is random
enough for training, and each remote chunk is downloaded once and then used up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DistributedSampler


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), int64, that depends on ``key`` only.

    It sorts raw random bits instead of calling ``Generator.permutation``: numpy guarantees the bit
    stream across releases, but not the results of its generators. A run may be resumed under a
    newer numpy.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(key)).random_raw(n), kind="stable")


class Order(Protocol):
    """Maps a position in the run, 0, 1, 2, ..., to a sample index."""

    def __call__(self, position: int) -> int: ...


class SampleOrder:
    """Maps a position in the run, 0, 1, 2, ... without end, to a sample index.

    Args:
        chunk_sizes: samples in each chunk; sample indices count through the chunks in this order.
        seed: seed of the shuffle. Every epoch over the data has its own order.
        window: number of chunks that are shuffled together.
    """

    def __init__(self, chunk_sizes: Sequence[int], seed: int, window: int = 16):
        self.sizes = np.asarray(chunk_sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.num_samples = int(self.starts[-1])
        self.seed, self.window = seed, window
        self._epoch = -1
        self._window_index = -1

    def __call__(self, position: int) -> int:
        # Shuffles of the current epoch and window are kept, because positions usually ascend.
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._chunks = permutation(len(self.sizes), self.seed, epoch)
            groups = [
                self._chunks[i : i + self.window] for i in range(0, len(self._chunks), self.window)
            ]
            self._groups = groups
            self._group_ends = np.cumsum([int(self.sizes[g].sum()) for g in groups])
            self._epoch, self._window_index = epoch, -1
        index = int(np.searchsorted(self._group_ends, offset, side="right"))
        if index != self._window_index:
            group = self._groups[index]
            samples = np.concatenate([np.arange(self.starts[c], self.starts[c + 1]) for c in group])
            self._samples = samples[permutation(len(samples), self.seed, epoch, index + 1)]
            self._window_index = index
        begin = int(self._group_ends[index - 1]) if index else 0
        return int(self._samples[offset - begin])


class StepSampler(DistributedSampler):
    """Samples of this rank for every micro-batch of a run, from the current optimizer step on.

    Optimizer step s uses the positions [s * G, (s + 1) * G) of the order, where G is the global
    batch in samples. Micro-batch m takes the m-th part of these positions, and rank r takes the
    r-th group of ``micro_batch_size`` in this part. The samples of a step therefore do not depend
    on accumulation or world size. The base class ``DistributedSampler`` serves only to keep the
    Trainer from replacing the sampler.

    Args:
        order: maps positions to sample indices.
        steps: optimizer steps of the run.
        accumulation: micro-batches per optimizer step on each rank.
        micro_batch_size: samples per micro-batch.
        rank, world_size: of this process.
        step: returns the optimizer step to start from; called when an iteration starts.
    """

    def __init__(
        self,
        order: Order,
        *,
        steps: int,
        accumulation: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        step: Callable[[], int],
    ):
        self.order, self.steps, self.accumulation = order, steps, accumulation
        self.micro_batch_size, self.rank, self.world_size, self.step = (
            micro_batch_size,
            rank,
            world_size,
            step,
        )

    def __len__(self) -> int:
        """Samples of the whole run on this rank; the loader's length must not shrink on resume."""
        return self.steps * self.accumulation * self.micro_batch_size

    def __iter__(self) -> Iterator[int]:
        part = self.micro_batch_size * self.world_size
        for micro_step in range(self.step() * self.accumulation, self.steps * self.accumulation):
            begin = micro_step * part + self.rank * self.micro_batch_size
            for position in range(begin, begin + self.micro_batch_size):
                yield self.order(position)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order derives the epoch from the position."""


class RankSampler(DistributedSampler):
    """Every world_size-th sample, without the padding by which torch's sampler makes ranks even."""

    def __init__(self, num_samples: int, rank: int, world_size: int):
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: evaluation has a single order."""


def stack_samples(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Collate dicts of equal-shaped arrays into a dict of tensors (batch, ...)."""
    return {
        key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]
    }
