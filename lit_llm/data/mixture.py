"""Mixture of several sources with given shares, as a pure function of the position.

The shares may change at given steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_llm.data.order import Order, SampleOrder, permutation
from lit_llm.errors import UserError

BLOCK = 4096
"""Block of positions in which every source gets its share, up to one sample."""

Phases = list[tuple[int, dict[str, float]]]
"""(first optimizer step, source -> share of the samples); the shares add up to 1."""


def read_phases(
    mixture: Mapping[str, float] | Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> Phases:
    """Parse a mixture setting into phases.

    Args:
        mixture: weights by source, or a list of {"step": first step, "weights": by source}.
        sources: names of the corpus's sources.

    Raises:
        UserError: unknown sources, weights that are not shares, steps that do not ascend from 0.
    """
    written = [{"step": 0, "weights": mixture}] if isinstance(mixture, Mapping) else list(mixture)
    phases: Phases = []
    if not written:
        raise UserError(
            f"data.mixture: each source needs at least 1/{BLOCK} of the weight, or none; got "
            f"{written}"
        )
    for entry in written:
        if set(entry) != {"step", "weights"} or not isinstance(entry["weights"], Mapping):
            raise UserError(
                "data.mixture: a list's entries are {step: first optimizer step, weights: "
                "{source: weight}}"
            )
        step, weights = entry["step"], entry["weights"]
        if (
            not isinstance(step, int)
            or step < 0
            or (step <= phases[-1][0] if phases else step != 0)
        ):
            raise UserError(
                f"data.mixture: steps must begin at 0 and ascend, got "
                f"{[e.get('step') for e in written]}"
            )
        if unknown := set(weights) - set(sources):
            raise UserError(
                f"data.mixture: no source {sorted(unknown)[0]}; the corpus has {', '.join(sources)}"
            )
        if any(
            not isinstance(w, (int, float)) or not 0 <= w < float("inf") for w in weights.values()
        ):
            raise UserError(
                f"data.mixture: weights must be numbers of at least 0, got {dict(weights)}"
            )
        total = sum(weights.values())
        shares = {
            source: weights[source] / total for source in sources if total and weights.get(source)
        }
        if not shares or min(shares.values()) < 1 / BLOCK:
            raise UserError(
                f"data.mixture: each source needs at least 1/{BLOCK} of the weight, or none; got "
                f"{weights}"
            )
        phases.append((step, shares))
    return phases


def phases_after(saved: Phases, step: int, now: Phases) -> Phases:
    """Phases of a run that followed ``saved`` before ``step`` and follows ``now`` afterwards."""
    past = [phase for phase in saved if phase[0] < step] or saved[:1]
    future = [phase for phase in now if phase[0] > step]
    current = [phase for phase in now if phase[0] <= step][-1][1]
    # If the shares do not change at this step, the old phase continues. A new phase would deal its
    # first samples in a different order.
    return past + ([] if current == past[-1][1] else [(step, current)]) + future


class MixedOrder:
    """Maps a position in the run to a sample of one of several sources.

    Each source has its own order. In every block of `BLOCK` positions of a phase, each source has
    its share of the positions, shuffled. A source continues in the next phase where the previous
    phase stopped.

    Args:
        chunk_sizes: by source, samples in each chunk; sample indices count through sources and
            chunks in this order.
        phases: see `read_phases`.
        rows_per_step: samples per optimizer step.
        seed: seed of all shuffles.
    """

    def __init__(
        self,
        chunk_sizes: Mapping[str, Sequence[int]],
        phases: Phases,
        rows_per_step: int,
        seed: int,
    ):
        self.names, self.seed = list(chunk_sizes), seed
        self.starts = np.concatenate(
            [[0], np.cumsum([sum(sizes) for sizes in chunk_sizes.values()])]
        )
        # The seed depends on the name, so a source keeps its order if other sources are added or
        # removed.
        self.orders: list[Order] = [
            SampleOrder(
                sizes,
                int(np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0]),
            )
            for name, sizes in chunk_sizes.items()
        ]
        self.begins = np.array([step * rows_per_step for step, _ in phases])
        self.bounds = [
            np.cumsum([shares.get(name, 0.0) for name in self.names]) for _, shares in phases
        ]
        for bounds in self.bounds:
            bounds[-1] = 1.0
        self._block: tuple[int, int] | None = None
        # Samples of each source that are used up when each phase begins.
        self._used = [np.zeros(len(self.names), dtype=np.int64)]
        # Count the samples that each phase takes: whole blocks, and the part of the last block.
        for phase, length in enumerate(np.diff(self.begins)):
            block, rest = divmod(int(length), BLOCK)
            self._enter(phase, block)
            partial = np.bincount(self._sources[:rest], minlength=len(self.names))
            self._used.append(self._used[phase] + self._samples_before(phase, block) + partial)

    def __call__(self, position: int) -> int:
        source, index = self.locate(position)
        return int(self.starts[source]) + self.orders[source](index)

    def locate(self, position: int) -> tuple[int, int]:
        """Source index of a position, and the number of earlier samples of this source."""
        phase = int(np.searchsorted(self.begins, position, side="right")) - 1
        block, offset = divmod(position - int(self.begins[phase]), BLOCK)
        if self._block != (phase, block):
            self._enter(phase, block)
        source = int(self._sources[offset])
        return source, int(self._indices[offset])

    def _samples_before(self, phase: int, blocks: int) -> np.ndarray:
        """Samples of each source in a phase's first ``blocks`` blocks.

        The cumulative sums are rounded, not the shares, so that the counts add up.
        """
        ends = np.floor(self.bounds[phase] * (blocks * BLOCK) + 0.5).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _enter(self, phase: int, block: int) -> None:
        before = self._samples_before(phase, block)
        counts = self._samples_before(phase, block + 1) - before
        ordered = np.repeat(np.arange(len(counts)), counts)
        self._sources = ordered[permutation(BLOCK, self.seed, phase, block)]
        self._indices = np.empty(BLOCK, dtype=np.int64)
        for source, first in enumerate(self._used[phase] + before):
            self._indices[self._sources == source] = np.arange(first, first + counts[source])
        self._block = (phase, block)
