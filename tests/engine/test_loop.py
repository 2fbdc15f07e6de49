"""The engine's thread: order of events, bounded queue, cancelling, errors, the watchdog, closing.

No test waits for a time: events and semaphores say when something has happened.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.loop import EngineLoop
from lit_llm.models.engine.requests import (
    Event,
    Finished,
    GeneratedToken,
    GenerationRequest,
    QueueFull,
    SamplingSettings,
)
from tests.engine.models import alone, answer, tiny

GREEDY = SamplingSettings(temperature=0.0)
WAIT = 60


class Listener:
    """Collects the events of a request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self.began = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.began.set()
        if isinstance(event, Finished):
            self.ended.set()

    def wait(self) -> list[Event]:
        assert self.ended.wait(WAIT)
        return self.events


class Gate:
    """Stops the engine before each step until a step is allowed."""

    def __init__(self, engine: Engine):
        self.allowed, self.waits = threading.Semaphore(0), Queue[None]()
        self.open, self.step = False, engine.step
        engine.step = self  # type: ignore[assignment, method-assign]

    def __call__(self) -> None:
        self.waits.put(None)
        if not self.open:
            assert self.allowed.acquire(timeout=WAIT)
        self.step()

    def release(self) -> None:
        self.open = True
        self.allowed.release()


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny(), 2000)


@pytest.fixture
def gate(engine: Engine) -> Gate:
    return Gate(engine)


@pytest.fixture
def loop(engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine, max_waiting=3, max_waiting_tokens=100)
    yield loop
    loop.close(0)
    assert not loop.alive()


def request(length: int = 5, new: int = 4, **more: Any) -> GenerationRequest:
    return GenerationRequest(list(range(length)), new, GREEDY, **more)


def test_requests_of_many_threads(loop: EngineLoop, engine: Engine) -> None:
    asked = [request(1 + i, 3) for i in range(3)]
    listeners = [Listener() for _ in asked]
    threads = [
        threading.Thread(target=loop.submit, args=pair)
        for pair in zip(asked, listeners, strict=True)
    ]
    for thread in threads:
        thread.start()
    answers = [answer(listener.wait()) for listener in listeners]
    assert answers == alone(tiny(), asked)


def test_full_queue(gate: Gate, loop: EngineLoop) -> None:
    listeners = [Listener() for _ in range(4)]
    loop.submit(request(), listeners[0])
    gate.waits.get(timeout=WAIT)  # the first one is with the engine, which has not begun
    for listener in listeners[1:3]:
        loop.submit(request(), listener)
    with pytest.raises(QueueFull, match="3 requests wait"):
        loop.submit(request(), listeners[3])
    gate.release()
    for listener in listeners[:3]:
        assert len(listener.wait()) == 5
    loop.submit(request(), listeners[3])
    assert len(listeners[3].wait()) == 5


def test_too_many_waiting_tokens(gate: Gate, loop: EngineLoop) -> None:
    first, second = Listener(), Listener()
    loop.submit(GenerationRequest([1] * 300, 1), first)  # alone it may be longer
    with pytest.raises(QueueFull, match="300 prompt tokens"):
        loop.submit(request(), second)
    gate.release()
    first.wait()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (GenerationRequest([], 3), "at least one token"),
        (GenerationRequest([1], 0), "max_new_tokens=0"),
        (GenerationRequest([1] * 690, 20), "exceed max_seq_len=700"),
        (GenerationRequest([97], 3), "prompt: token ids must be from 0 to 96"),
        (GenerationRequest([-1], 3), "prompt: token ids"),
        (GenerationRequest([1], 3, SamplingSettings(logit_bias={97: 1.0})), "logit_bias"),
        (GenerationRequest([1], 3, top_logprobs=21), "top_logprobs=21: must be from 0 to 20"),
    ],
)
def test_requests_that_can_never_run(
    loop: EngineLoop, asked: GenerationRequest, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loop.submit(asked, Listener())


def test_more_than_the_memory() -> None:
    engine = Engine(tiny(), 600)
    engine.check(GenerationRequest([1] * 100, 100))
    with pytest.raises(UserError, match="memory for 600 tokens"):
        engine.check(GenerationRequest([1] * 100, 300))


def test_cancel(gate: Gate, loop: EngineLoop) -> None:
    waiting, running, other = Listener(), Listener(), Listener()
    handle = loop.submit(request(new=500), running)
    gate.allowed.release()
    assert running.began.wait(WAIT)
    loop.submit(request(), other)
    loop.submit(request(), waiting).cancel()
    handle.cancel()
    told = len(running.events)
    gate.release()
    assert waiting.wait() == [Finished("cancelled", 5, 0, 0)]
    end = running.wait()[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled"
    assert end.new_tokens <= told + 1
    assert answer(other.wait()) == alone(tiny(), [request()])[0]


def test_an_error_ends_only_its_own_requests(engine: Engine, loop: EngineLoop) -> None:
    """The model fails for prompts that begin with token 50."""
    hidden = engine.model.hidden_states

    def failing(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        if ids[0, 0] == 50:
            raise RuntimeError("secret of the prompt")
        return hidden(ids, **more)

    engine.model.hidden_states = failing  # type: ignore[method-assign]
    bad, good, later = Listener(), Listener(), Listener()
    loop.submit(GenerationRequest([50, 1], 4), bad)
    loop.submit(request(), good)
    end = bad.wait()[-1]
    assert isinstance(end, Finished) and end.reason == "error"
    assert end.error == "RuntimeError in the engine"  # and not its text, which may quote a prompt
    assert answer(good.wait()) == alone(tiny(), [request()])[0]
    loop.submit(request(), later)
    assert answer(later.wait()) == answer(good.events)
    assert loop.alive() and not engine.table.owners()


def test_an_error_outside_of_requests_ends_all_and_the_loop_goes_on(
    engine: Engine, loop: EngineLoop
) -> None:
    plan, failing = engine.scheduler.plan, [True]

    def once() -> Any:
        if failing.pop() if failing else False:
            raise MemoryError
        return plan()

    engine.scheduler.plan = once  # type: ignore[method-assign]
    first, second = Listener(), Listener()
    loop.submit(request(), first)
    assert first.wait() == [Finished("error", 5, 0, 0, error="MemoryError in the engine")]
    assert not engine.table.owners()
    loop.submit(request(), second)
    assert len(second.wait()) == 5


def test_an_answer_that_cannot_go_on_ends_alone(loop: EngineLoop) -> None:
    bad, good = Listener(), Listener()
    excluded = SamplingSettings(logit_bias=dict.fromkeys(range(97), -math.inf))
    loop.submit(GenerationRequest([1], 4, excluded), bad)
    loop.submit(request(), good)
    assert bad.wait() == [Finished("error", 1, 0, 0, error="RuntimeError in the engine")]
    assert answer(good.wait()) == alone(tiny(), [request()])[0]


def test_a_listener_that_raises_ends_its_own_request(engine: Engine, loop: EngineLoop) -> None:
    ended, other = threading.Event(), Listener()

    def raising(event: Event) -> None:
        if isinstance(event, GeneratedToken):
            raise ValueError
        assert event.reason == "cancelled" and event.new_tokens == 1
        ended.set()

    loop.submit(request(new=100), raising)
    loop.submit(request(), other)
    assert ended.wait(WAIT)
    assert len(other.wait()) == 5


def test_a_stuck_step_is_not_alive(engine: Engine, gate: Gate) -> None:
    loop = EngineLoop(engine, step_timeout=0.0)
    assert loop.alive()
    listener = Listener()
    loop.submit(request(), listener)
    gate.waits.get(timeout=WAIT)
    assert not loop.alive()
    gate.release()
    listener.wait()
    loop.close(WAIT)


def test_close_finishes_what_runs(gate: Gate, loop: EngineLoop) -> None:
    listener = Listener()
    loop.submit(request(), listener)
    closer = threading.Thread(target=loop.close, args=(WAIT,))
    gate.waits.get(timeout=WAIT)
    closer.start()
    gate.release()
    closer.join(WAIT)
    assert answer(listener.wait()) == alone(tiny(), [request()])[0]
    with pytest.raises(QueueFull, match="no more"):
        loop.submit(request(), listener)


def test_close_ends_what_takes_too_long(gate: Gate, loop: EngineLoop) -> None:
    listener = Listener()
    loop.submit(request(new=600), listener)
    gate.waits.get(timeout=WAIT)
    closer = threading.Thread(target=loop.close, args=(0,))
    closer.start()
    with loop._wake:
        assert loop._wake.wait_for(lambda: loop._ending, WAIT)
    gate.release()
    end = listener.wait()[-1]
    closer.join(WAIT)
    assert isinstance(end, Finished) and end.reason == "cancelled" and end.new_tokens == 1


def test_many_requests_leave_nothing(engine: Engine) -> None:
    loop = EngineLoop(engine, max_waiting=10**6, max_waiting_tokens=10**6)
    listeners = [Listener() for _ in range(200)]
    for number, listener in enumerate(listeners):
        handle = loop.submit(request(1 + number % 7, 1 + number % 3), listener)
        if number % 5 == 0:
            handle.cancel()
    for listener in listeners:
        listener.wait()
    loop.close(WAIT)
    assert engine.table.used == 0 and not engine.busy
