"""The engine's thread: a bounded queue before the steps, cancelling, and a watchdog."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import GenerationRequest, OnEvent, QueueFull
from lit_llm.models.engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Submitted:
    """A request between `EngineLoop.submit` and the engine; also its caller's handle."""

    request: GenerationRequest
    on_event: OnEvent
    wake: threading.Condition
    sequence: Sequence | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """End the request within one step."""
        with self.wake:
            self.cancelled = True
            if self.sequence is not None:
                self.sequence.cancelled = True
            self.wake.notify()


class EngineLoop:
    """Runs an `Engine` in a thread of its own: a `GenerationEngine`.

    Args:
        engine: nobody else may use it.
        max_waiting: requests that may wait for a slot; one more is refused.
        max_waiting_tokens: prompt tokens of waiting requests together. A request is never refused
            because of its own length alone.
        step_timeout: seconds after which a step counts as stuck, see `alive`.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = 256,
        max_waiting_tokens: int = 1_000_000,
        step_timeout: float = 60.0,
    ):
        self.max_seq_len = engine.max_seq_len
        self._engine, self._step_timeout = engine, step_timeout
        self._max_waiting, self._max_waiting_tokens = max_waiting, max_waiting_tokens
        self._wake = threading.Condition()
        self._submitted: deque[_Submitted] = deque()
        self._waiting, self._waiting_tokens = 0, 0  # of the engine, as of its last step
        self._closing = self._ending = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, on_event: OnEvent) -> _Submitted:
        """Admit a request. Any thread may call.

        Raises:
            QueueFull: too many requests or prompt tokens wait, or the engine is closing.
            UserError: a request that can never run, see `Engine.check`.
        """
        self._engine.check(request)
        submitted = _Submitted(request, on_event, self._wake)
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise QueueFull("the engine takes no more requests")
            count = self._waiting + len(self._submitted)
            tokens = self._waiting_tokens + sum(len(s.request.prompt) for s in self._submitted)
            if count >= self._max_waiting:
                raise QueueFull(f"{count} requests wait already")
            if count and tokens + len(request.prompt) > self._max_waiting_tokens:
                raise QueueFull(f"requests with {tokens:,} prompt tokens wait already")
            self._submitted.append(submitted)
            self._wake.notify()
        return submitted

    def alive(self) -> bool:
        """Whether the thread runs and its current step is within the time limit."""
        began = self._step_began
        stuck = began is not None and time.monotonic() - began > self._step_timeout
        return self._thread.is_alive() and not stuck

    def close(self, grace: float) -> None:
        """Take no more requests, finish the running ones within ``grace`` seconds, end the rest.

        Returns when the thread has ended, or after two more step time-outs if a step is stuck.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(grace)
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join(2 * self._step_timeout)

    def _run(self) -> None:
        try:
            while self._take():
                self._step_began = time.monotonic()
                try:
                    self._engine.step()
                except Exception as error:
                    # The engine's books may be wrong now, so none of its requests can go on.
                    log.error("the engine's step failed", exc_info=error)
                    self._engine.end_all("error", error=f"{type(error).__name__} in the engine")
                self._step_began = None
        finally:
            self._end()

    def _take(self) -> bool:
        """Wait for work and give it to the engine; return False at the end."""
        with self._wake:
            while not (self._submitted or self._engine.busy or self._closing):
                self._count_waiting()
                self._wake.wait()
            if self._ending or (self._closing and not (self._submitted or self._engine.busy)):
                return False
            while self._submitted:
                submitted = self._submitted.popleft()
                sequence = self._engine.add(submitted.request, submitted.on_event)
                submitted.sequence, sequence.cancelled = sequence, submitted.cancelled
            self._count_waiting()
        return True

    def _count_waiting(self) -> None:
        waiting = self._engine.scheduler.waiting
        self._waiting = len(waiting)
        self._waiting_tokens = sum(sequence.prompt_length for sequence in waiting)

    def _end(self) -> None:
        """Tell everyone who still waits for an answer that there will be none."""
        with self._wake:
            planned, self._closing = self._closing, True
            while self._submitted:
                submitted = self._submitted.popleft()
                self._engine.add(submitted.request, submitted.on_event)
        if planned:
            self._engine.end_all("cancelled")
        else:
            self._engine.end_all("error", error="the engine has stopped")
