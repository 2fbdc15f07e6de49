"""Slots: which sequence's keys and values lie where, and how many tokens the budget still has.

A slot holds one sequence in a row. Its capacity is one of a few classes, and the slots of a class
that are in use are always the first ones, so that attention reads them as one batch without a copy.
The class follows from the sequence's own length alone: the bits of a product over all positions of
a slot depend on their number, and must not depend on other sequences.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

CHUNK = 128
"""Tokens of a prompt that are computed together, counted from the prompt's beginning."""
SMALLEST = 256
"""Positions in the smallest class of slots."""

Owner = TypeVar("Owner", bound=Hashable)


def chunks_of(tokens: int) -> int:
    """Number of chunks that hold ``tokens`` tokens; the last one may be padded."""
    return -(-tokens // CHUNK)


def capacities(max_seq_len: int) -> list[int]:
    """Capacities of the classes of slots, ascending: each twice the one before it.

    The largest one holds ``max_seq_len`` positions. A sequence reads at most twice the positions
    that it has, and its moves to larger slots copy fewer positions than it ends with.
    """
    largest, found = chunks_of(max_seq_len) * CHUNK, [SMALLEST]
    while found[-1] < largest:
        found.append(found[-1] * 2)
    found[-1] = largest
    return found


@dataclass(frozen=True)
class Move:
    """A copy of a slot that closes a gap: the sequence in ``source`` goes to ``target``."""

    capacity: int
    source: int
    target: int


class SlotTable(Generic[Owner]):
    """Owners of the slots, counted in tokens against a budget.

    An owner has one slot, or two while it moves to a larger one. It may have reserved more tokens
    than its slots have.

    Args:
        capacities: classes of slots, ascending.
        budget: largest number of tokens in slots and reservations together.
    """

    def __init__(self, capacities: list[int], budget: int):
        self.capacities, self.budget = capacities, budget
        self._owners: dict[int, list[Owner]] = {capacity: [] for capacity in capacities}
        self._places: dict[Owner, dict[int, int]] = {}
        self._reserved: dict[Owner, int] = {}

    def capacity_for(self, length: int) -> int:
        """Capacity of the smallest slot with ``length`` positions."""
        return next(capacity for capacity in self.capacities if capacity >= length)

    def need(self, first: int, last: int) -> int:
        """Most tokens that a sequence holds while it grows from ``first`` to ``last`` positions."""
        begin, end = self.capacity_for(first), self.capacity_for(last)
        if begin == end:
            return end
        return end + self.capacities[self.capacities.index(end) - 1]

    @property
    def used(self) -> int:
        """Tokens in slots and reservations."""
        return sum(self._held(owner) for owner in self._places)

    def _held(self, owner: Owner) -> int:
        return max(sum(self._places[owner]), self._reserved.get(owner, 0))

    def fits(self, owner: Owner, tokens: int) -> bool:
        """Whether ``owner`` may take ``tokens`` more, from its reservation or from the budget."""
        held, taken = 0, 0
        if owner in self._places:
            held, taken = self._held(owner), sum(self._places[owner])
        return self.used - held + max(held, taken + tokens) <= self.budget

    def take(self, owner: Owner, capacity: int, reserve: int = 0) -> int:
        """Give ``owner`` the next slot of a class and return its index.

        Args:
            reserve: tokens that stay set aside for the owner until it gives everything back.
        """
        places = self._places.setdefault(owner, {})
        assert capacity not in places
        self._reserved[owner] = max(reserve, self._reserved.get(owner, 0))
        self._owners[capacity].append(owner)
        places[capacity] = len(self._owners[capacity]) - 1
        assert self.used <= self.budget
        return places[capacity]

    def give_back(self, owner: Owner, capacity: int) -> Move | None:
        """Free a slot. Return the copy that keeps the used slots together, if one is needed."""
        index, owners = self._places[owner].pop(capacity), self._owners[capacity]
        if not self._places[owner]:
            del self._places[owner], self._reserved[owner]
        last = owners.pop()
        if index == len(owners):
            return None
        owners[index] = last
        self._places[last][capacity] = index
        return Move(capacity, len(owners), index)

    def clear(self) -> None:
        """Free all slots."""
        self._owners = {capacity: [] for capacity in self.capacities}
        self._places, self._reserved = {}, {}

    def index(self, owner: Owner, capacity: int) -> int:
        """Place of the owner's slot among those of its class."""
        return self._places[owner][capacity]

    def count(self, capacity: int) -> int:
        """Number of slots in use in a class. They are the first ones."""
        return len(self._owners[capacity])

    def owners(self) -> set[Owner]:
        """All that have a slot."""
        return set(self._places)
