"""Slots are never lost, shared or beyond the budget; their memory follows them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.engine.memory import SlotMemory
from lit_llm.models.engine.requests import GenerationRequest
from lit_llm.models.engine.scheduler import Scheduler
from lit_llm.models.engine.sequence import Sequence
from lit_llm.models.engine.slots import CHUNK, Move, SlotTable, capacities

EVEN = 300.0
"""Position at which attention takes as long as the weights."""


@pytest.mark.parametrize(
    ("length", "expected"),
    [(100, [128]), (256, [256]), (700, [256, 512, 768]), (4096, [256, 512, 1024, 2048, 4096])],
)
def test_capacities(length: int, expected: list[int]) -> None:
    assert capacities(length) == expected


def test_what_a_growing_sequence_needs() -> None:
    table: SlotTable[str] = SlotTable([256, 512, 768], 5000)
    assert table.need(128, 256) == 256
    assert table.need(128, 257) == 512 + 256
    assert table.need(128, 700) == 768 + 512
    assert table.need(600, 700) == 768


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([256, 512])), max_size=60))
@settings(max_examples=200, deadline=None)
def test_memory_follows_its_owner(events: list[tuple[int, int]]) -> None:
    """An owner without a slot takes one, an owner with one gives it back."""
    table: SlotTable[int] = SlotTable([256, 512], 2048)
    memory = SlotMemory(2, 1, 2, 2048, torch.device("cpu"), torch.float32)
    held: dict[int, int] = {}
    for owner, capacity in events:
        if owner in held:
            move = table.give_back(owner, held.pop(owner))
            if move is not None:
                memory.close_gap(move)
        elif table.fits(owner, capacity):
            index = table.take(owner, capacity)
            memory.ensure(capacity, {each: table.count(each) for each in table.capacities})
            memory.write(capacity, index, 0, *(torch.full((2, 1, 3, 2), 1.0 + owner),) * 2)
            held[owner] = capacity
        assert table.used == sum(held.values()) <= 2048
        assert memory.tokens <= 2048
        assert table.owners() == held.keys()
        for other, class_ in held.items():
            keys, values = memory.read(class_, table.index(other, class_), 0, 3)
            assert (keys == 1.0 + other).all() and (values == 1.0 + other).all()


class Simulation:
    """The scheduler's work without a model: every chunk and every token takes no time."""

    def __init__(self, budget: int, step_tokens: int, max_running: int, even: float = EVEN):
        self.table: SlotTable[Sequence] = SlotTable(capacities(1000), budget)
        self.grown = 0
        self.scheduler = Scheduler(
            self.table,
            step_tokens,
            even,
            max_running,
            self._moved,
            self._grown,
            lambda capacity: None,
        )

    def _moved(self, move: Move) -> None:
        assert move.source > move.target

    def _grown(self, sequence: Sequence, old: int) -> None:
        assert sequence.capacity > old == sequence.computed
        self.grown += 1

    def add(self, number: int, prompt: int, new: int) -> Sequence:
        request = GenerationRequest([1] * prompt, new)
        sequence = Sequence(number, request, lambda event: None)
        assert self.scheduler.can_ever_run(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        plan = self.scheduler.plan()
        assert plan.chunks or plan.answers, "nothing goes on"
        costs, begins = 0.0, {s: s.computed for s in plan.chunks}
        for sequence in plan.chunks:
            costs += self.scheduler.chunk_cost(begins[sequence])
            begins[sequence] += CHUNK
        assert len(plan.chunks) == 1 or costs <= self.scheduler.step_tokens
        places = [(s.capacity, self.table.index(s, s.capacity)) for s in plan.answers]
        assert len(places) == len(set(places))
        for sequence in plan.chunks:
            sequence.computed = min(sequence.computed + CHUNK, sequence.prompt_length)
            if not sequence.waits_for_prompt and not sequence.new_tokens:
                self._append(sequence)
        for sequence in plan.answers:
            assert sequence.computed < sequence.capacity
            assert sequence.capacity == self.table.capacity_for(
                max(sequence.first_length, sequence.computed + 1)
            )
            sequence.computed += 1
            if not sequence.remaining:
                self._append(sequence)
        assert self.table.used <= self.table.budget

    def _append(self, sequence: Sequence) -> None:
        sequence.tokens.append(1)
        if sequence.new_tokens == sequence.request.max_new_tokens:
            sequence.finished = "length"
            self.scheduler.drop(sequence)


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 400), st.integers(0, 40)),
        min_size=1, max_size=12,
    ),
    st.integers(1792, 5000),
    st.sampled_from([1, 128, 300, 1024]),
    st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_request_ends(
    asked: list[tuple[int, int, int]], budget: int, step_tokens: int, max_running: int
) -> None:
    simulation = Simulation(budget, step_tokens, max_running)
    waiting = sorted((when, number, p, n) for number, (p, n, when) in enumerate(asked))
    sequences: list[Sequence] = []
    step = 0
    while waiting or any(s.finished is None for s in sequences):
        while waiting and waiting[0][0] <= step:
            _, _, prompt, new = waiting.pop(0)
            sequences.append(simulation.add(len(sequences), prompt, new))
        if any(s.finished is None for s in sequences):
            simulation.step()
        step += 1
    assert simulation.table.used == 0 and not simulation.table.owners()
    assert not simulation.scheduler.waiting and not simulation.scheduler.running
    for sequence in sequences:
        assert sequence.new_tokens == sequence.request.max_new_tokens


def test_cancelled_sequences_leave_nothing() -> None:
    draw = random.Random(0)
    simulation = Simulation(3000, 256, 8)
    sequences = [simulation.add(i, draw.randrange(1, 400), 300) for i in range(10)]
    for sequence in sequences:
        for _ in range(5):
            simulation.step()
        simulation.scheduler.drop(sequence)
    assert simulation.table.used == 0 and not simulation.scheduler.waiting


def test_a_long_prompt_stops_neither_answers_nor_short_prompts() -> None:
    simulation = Simulation(9000, 256, 8, even=900.0)
    answering = simulation.add(0, 5, 100)
    simulation.step()
    long = [simulation.add(i, 900, 5) for i in (1, 2)]
    simulation.step()
    short = simulation.add(3, 20, 5)
    answered = answering.new_tokens
    simulation.step()
    assert short.new_tokens == 1 and answering.new_tokens == answered + 1
    for _ in range(10):
        simulation.step()
    assert all(sequence.new_tokens for sequence in long)


def test_a_step_has_fewer_chunks_far_into_a_prompt() -> None:
    """Attention over the earlier chunks takes most of the time there."""
    simulation = Simulation(9000, 256, 8)
    long = simulation.add(0, 900, 5)
    steps = []
    while long.waits_for_prompt:
        before = long.computed
        simulation.step()
        steps.append(long.computed - before)
    assert steps == [256, 128, 128, 128, 128, 128, 4]


def test_ageing_brings_a_long_prompt_its_turn() -> None:
    """Short prompts that keep coming put a long one off for a while, not for ever."""
    simulation = Simulation(9000, 128, 50)
    long = simulation.add(0, 900, 5)
    for number in range(1, 100):
        simulation.add(number, 100, 1)
        simulation.step()
    assert long.computed
