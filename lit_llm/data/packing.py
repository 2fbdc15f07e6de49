"""Packing of several conversations into one row, as a pure function of lengths and order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from lit_llm.data.order import permutation

# Rows that are filled at the same time. More rows pack a little tighter, but put examples together
# that are further apart in the order.
_OPEN_ROWS = 64


def pack(lengths: Sequence[int] | np.ndarray, order: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack examples into rows by best fit.

    An example goes into the open row where it leaves the least room. If there are too many open
    rows, the fullest one is closed.

    Args:
        lengths: tokens of each example.
        order: example indices, in the order in which they are packed.
        capacity: most tokens in a row.

    Returns:
        Example indices of each row; every example occurs once.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in order.tolist():
        # The open row with the least room that still fits the example, else a new row.
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
    """Maps a row's position in a run to its examples, as a function of (lengths, seed, position).

    Args:
        lengths: tokens of each example, none above ``capacity``.
        capacity: most tokens in a row.
        epochs: passes over the examples. A fraction below one takes this share of a pass's rows.
        seed: seed of the order; each pass has its own order.
        packing: False puts one example in each row.
    """

    def __init__(
        self, lengths: np.ndarray, capacity: int, epochs: float, seed: int, packing: bool = True
    ):
        self.rows: list[list[int]] = []
        epoch = 0
        while epochs > 0:
            order = permutation(len(lengths), seed, epoch)
            rows = pack(lengths, order, capacity) if packing else [[i] for i in order.tolist()]
            # Best fit closes rows of long examples early. Without a second shuffle, lengths would
            # drift within a pass.
            shuffled = [rows[i] for i in permutation(len(rows), seed, epoch, 1)]
            self.rows += shuffled[: max(1, round(epochs * len(rows)))] if epochs < 1 else shuffled
            epochs, epoch = epochs - 1, epoch + 1

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, position: int) -> int:
        """Index of the row at a position: rows are stored in order of use."""
        return position
