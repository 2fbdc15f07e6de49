"""What one step computes: chunks of prompts within a budget, and a token for each answer.

The scheduler knows no tensors. Its decisions change when a token is computed, and never how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lit_llm.models.engine.sequence import Sequence
from lit_llm.models.engine.slots import CHUNK, Move, SlotTable

AGEING = 64
"""Tokens by which a prompt counts as shorter for each step in which it was given nothing."""


@dataclass
class Plan:
    """The work of one step."""

    chunks: list[Sequence] = field(default_factory=list)
    """Sequences that compute a chunk of their prompts, one chunk for each time they are listed."""
    answers: list[Sequence] = field(default_factory=list)
    """Sequences that compute one token."""


class Scheduler:
    """Gives slots to sequences and takes them back.

    Args:
        table: the slots.
        step_tokens: largest number of prompt tokens in a step. At least one chunk is computed.
        even_position: position at which attention takes as long as the products with the weights.
            A chunk that begins twice as far counts as two chunks, and so on.
        max_running: largest number of sequences with a slot.
        moved: called for each copy that closes a gap between slots.
        grown: called when a sequence's slot is now another one: the sequence and its old capacity.
            The old slot is freed after the call.
        taken: called when a class of slots has grown, with its capacity.
    """

    def __init__(
        self,
        table: SlotTable[Sequence],
        step_tokens: int,
        even_position: float,
        max_running: int,
        moved: Callable[[Move], None],
        grown: Callable[[Sequence, int], None],
        taken: Callable[[int], None],
    ):
        self.table, self.max_running = table, max_running
        self.step_tokens, self.even_position = step_tokens, even_position
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in the order of their arrival
        self.preemptions = 0
        self.step = 0
        self._moved, self._grown, self._taken = moved, grown, taken

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        sequence.served = self.step
        self.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence, wherever it is, and free its slot."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def clear(self) -> list[Sequence]:
        """Forget all sequences and their slots, and return the sequences."""
        dropped = [*self.waiting, *self.running]
        self.waiting, self.running = [], []
        self.table.clear()
        return dropped

    def can_ever_run(self, sequence: Sequence) -> bool:
        """Whether the whole budget is enough for this sequence alone."""
        return self._need(sequence) <= self.table.budget

    def plan(self) -> Plan:
        """Admit, grow and preempt sequences, and choose the work of the next step."""
        self.step += 1
        self._admit()
        answers = []
        for sequence in list(self.running):
            # An earlier one may have taken this one's slot.
            answering = sequence.capacity and not sequence.waits_for_prompt
            if answering and self._has_room(sequence):
                answers.append(sequence)
        return Plan(self._chunks(), [s for s in answers if s.capacity])

    def _urgency(self, sequence: Sequence) -> tuple[int, int]:
        waited = self.step - sequence.served
        return sequence.remaining - AGEING * waited, sequence.number

    def _need(self, sequence: Sequence) -> int:
        return self.table.need(sequence.first_length, sequence.final_length)

    def _admit(self) -> None:
        # The most urgent one that does not fit stops those behind it, or a long prompt could wait
        # for ever.
        for sequence in sorted(self.waiting, key=self._urgency):
            capacity = self.table.capacity_for(sequence.first_length)
            # Who was preempted comes back when nothing can be taken from it again.
            reserve = self._need(sequence) if sequence.preempted_by else 0
            if len(self.running) >= self.max_running or not self.table.fits(
                sequence, max(capacity, reserve)
            ):
                return
            self.waiting.remove(sequence)
            self.table.take(sequence, capacity, reserve)
            sequence.capacity = capacity
            self._taken(capacity)
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.number)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the next position has a place, after a move to a larger slot if necessary."""
        if sequence.computed < sequence.capacity:
            return True
        old, new = sequence.capacity, self.table.capacity_for(sequence.computed + 1)
        while not self.table.fits(sequence, new):
            victims = [
                other
                for other in self.running
                if other.number > sequence.number and sequence not in other.preempted_by
            ]
            if not victims:
                return False
            self._preempt(victims[-1], sequence)
        self.table.take(sequence, new)
        sequence.capacity = new
        self._taken(new)
        self._grown(sequence, old)
        self._give_back(sequence, old)
        return True

    def _preempt(self, victim: Sequence, by: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(victim)
        self._release(victim)
        victim.preempted_by.add(by)
        victim.restart()
        self.add(victim)

    def _release(self, sequence: Sequence) -> None:
        self._give_back(sequence, sequence.capacity)
        sequence.capacity = 0

    def _give_back(self, sequence: Sequence, capacity: int) -> None:
        move = self.table.give_back(sequence, capacity)
        if move is not None:
            self._moved(move)

    def chunk_cost(self, begin: int) -> float:
        """What a chunk counts that begins at a position, in tokens."""
        return CHUNK * max(1.0, begin / self.even_position)

    def _chunks(self) -> list[Sequence]:
        chunks: list[Sequence] = []
        left = float(self.step_tokens)
        prompts = [s for s in self.running if s.waits_for_prompt]
        for sequence in sorted(prompts, key=self._urgency):
            for begin in range(sequence.computed, sequence.prompt_length, CHUNK):
                if chunks and self.chunk_cost(begin) > left:
                    break
                left -= self.chunk_cost(begin)
                chunks.append(sequence)
                sequence.served = self.step
        return chunks
