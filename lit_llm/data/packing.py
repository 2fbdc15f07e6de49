"""Several conversations in one row: which go together, a pure function of the lengths and their
order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from lit_llm.data.order import permutation

_OPEN_ROWS = (
    64  # rows still being filled at once: more packs a little tighter and mixes neighbours more
)


def pack(lengths: Sequence[int] | np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of example indices whose lengths add up to at most ``capacity`` each; every example
    once.

    Best fit: an example goes where it leaves the least room, among the rows still open; when there
        are too many, the
    fullest is closed.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in order.tolist():
        length = int(lengths[index])
        at = bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = capacity, len(rows)
            rows.append([])
            if len(open_rows) == _OPEN_ROWS:
                open_rows.pop(0)
        rows[row].append(index)
        if room > length:
            insort(open_rows, (room - length, row))
    return rows


class PackedOrder:
    """Maps a row's position in a run to the examples in it: a pure function of (lengths, seed,
    position).

    Args:
        lengths: tokens of each example, none above ``capacity``.
        capacity: tokens a row holds.
        epochs: passes over the examples; a fraction is that share of a pass's rows.
        seed: of the order; every pass has its own.
        packing: False puts one example in a row.
    """

    def __init__(
        self, lengths: np.ndarray, capacity: int, epochs: float, seed: int, packing: bool = True
    ):
        self.rows: list[list[int]] = []
        epoch = 0
        while epochs > 0:
            order = permutation(len(lengths), seed, epoch)
            rows = pack(lengths, order, capacity) if packing else [[i] for i in order.tolist()]
            # Best fit closes long rows early: without a second shuffle lengths would drift within
            # the pass.
            shuffled = [rows[i] for i in permutation(len(rows), seed, epoch, 1)]
            self.rows += shuffled[: max(1, round(epochs * len(rows)))] if epochs < 1 else shuffled
            epochs, epoch = epochs - 1, epoch + 1

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, position: int) -> int:
        """The row at a position: rows are kept in order of use."""
        return position
