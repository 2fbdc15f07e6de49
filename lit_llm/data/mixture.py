"""Several sources in given shares, which may change at given steps: still a pure function of the
position."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_llm.data.order import Order, SampleOrder, permutation
from lit_llm.errors import UserError

BLOCK = 4096
"""Positions within which every source gets its share, up to one sample."""

Phases = list[tuple[int, dict[str, float]]]
"""From which optimizer step on which share of the samples comes from which source; shares add up to
1."""


def read_phases(
    mixture: Mapping[str, float] | Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> Phases:
    """A mixture as people write it: weights by source, or a list of {"step": first step, "weights":
    by source}.

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
    """The phases of a run that followed ``saved`` up to ``step`` and follows ``now`` from there
    on."""
    past = [phase for phase in saved if phase[0] < step] or saved[:1]
    future = [phase for phase in now if phase[0] > step]
    current = [phase for phase in now if phase[0] <= step][-1][1]
    # Where shares stay as they are the phase goes on: a new one would deal its first samples in
    # another order.
    return past + ([] if current == past[-1][1] else [(step, current)]) + future


class MixedOrder:
    """Maps a position in the run to a sample of one of several sources, each read in an order of
    its own.

    In every block of `BLOCK` positions of a phase each source has its share of them, shuffled; a
    source goes on in the next phase where it was left in the last.

    Args:
        chunk_sizes: by source, samples in each chunk; sample indices count through sources and
            chunks in this order.
        phases: see `read_phases`.
        rows_per_step: samples of an optimizer step.
        seed: of all the shuffles.
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
        # A seed by name: a source keeps its order when others come or go.
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
        self._used = [
            np.zeros(len(self.names), dtype=np.int64)
        ]  # of each source, when each phase begins
        for phase, length in enumerate(np.diff(self.begins)):
            block, rest = divmod(int(length), BLOCK)
            self._enter(phase, block)
            partial = np.bincount(self._sources[:rest], minlength=len(self.names))
            self._used.append(self._used[phase] + self._before(phase, block) + partial)

    def __call__(self, position: int) -> int:
        source, index = self.locate(position)
        return int(self.starts[source]) + self.orders[source](index)

    def locate(self, position: int) -> tuple[int, int]:
        """Which source a position is of, and how many samples of that source come before."""
        phase = int(np.searchsorted(self.begins, position, side="right")) - 1
        block, offset = divmod(position - int(self.begins[phase]), BLOCK)
        if self._block != (phase, block):
            self._enter(phase, block)
        source = int(self._sources[offset])
        return source, int(self._indices[offset])

    def _before(self, phase: int, blocks: int) -> np.ndarray:
        """Samples of each source in a phase's first ``blocks`` blocks: rounded sums add up where
        shares would not."""
        ends = np.floor(self.bounds[phase] * (blocks * BLOCK) + 0.5).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _enter(self, phase: int, block: int) -> None:
        before = self._before(phase, block)
        counts = self._before(phase, block + 1) - before
        ordered = np.repeat(np.arange(len(counts)), counts)
        self._sources = ordered[permutation(BLOCK, self.seed, phase, block)]
        self._indices = np.empty(BLOCK, dtype=np.int64)
        for source, first in enumerate(self._used[phase] + before):
            self._indices[self._sources == source] = np.arange(first, first + counts[source])
        self._block = (phase, block)
