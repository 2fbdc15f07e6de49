"""An engine that says what a test wants, one token at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lit_llm.models.engine.requests import (
    Finished,
    GeneratedToken,
    GenerationRequest,
    OnEvent,
    QueueFull,
)
from lit_llm.models.tokenizer import Tokenizer

Script = Callable[[GenerationRequest], str]


@dataclass
class Running:
    """A request inside the engine; also its handle."""

    request: GenerationRequest
    on_event: OnEvent
    computed: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class ScriptedEngine:
    """Plays `GenerationEngine`: answers with the tokens of ``script(request)``.

    Args:
        tokenizer: encodes the script's text.
        script: the text of an answer; its end is the end of the answer.

    Attributes:
        running: every request so far.
        pause: while it is clear, no token comes after the first ``free`` ones of each answer.
        fail_after: number of tokens after which an answer fails.
        room: number of requests at once, above which the queue is full.
    """

    def __init__(self, tokenizer: Tokenizer, script: Script, max_seq_len: int = 512):
        self.tokenizer, self.script, self.max_seq_len = tokenizer, script, max_seq_len
        self.running: list[Running] = []
        self.pause = threading.Event()
        self.pause.set()
        self.free = 0
        self.fail_after: int | None = None
        self.room = 1000
        self.is_alive, self.closed = True, threading.Event()
        self._threads = ThreadPoolExecutor(64)

    def submit(self, request: GenerationRequest, on_event: OnEvent) -> Running:
        """Start an answer in a thread of its own."""
        assert len(request.prompt) + request.max_new_tokens <= self.max_seq_len
        if self.closed.is_set() or sum(not r.over.is_set() for r in self.running) >= self.room:
            raise QueueFull("too many")
        running = Running(request, on_event)
        self.running.append(running)
        self._threads.submit(self._run, running)
        return running

    def alive(self) -> bool:
        """See `is_alive`."""
        return self.is_alive

    def close(self, grace: float) -> None:
        """Wait for the answers, then cancel them."""
        self.closed.set()
        for running in list(self.running):
            running.over.wait(grace)
            running.cancel()
        self.pause.set()
        for running in list(self.running):
            running.over.wait(10)

    def _run(self, running: Running) -> None:
        request = running.request
        ids = self.tokenizer.encode(self.script(request), allow_special=True)
        reason, stop_id = "stop", next(iter(request.stop_ids), None)
        if len(ids) > request.max_new_tokens:
            reason, ids, stop_id = "length", ids[: request.max_new_tokens], None
        error = None
        for number, token in enumerate(ids):
            while number >= self.free and not self.pause.wait(0.01):
                if running.cancelled.is_set():
                    break
            if running.cancelled.is_set():
                reason, stop_id = "cancelled", None
                break
            if number == self.fail_after:
                reason, stop_id, error = "error", None, "a secret of the machine"
                break
            running.computed += 1
            running.on_event(self._token(request, token))
        running.on_event(
            Finished(reason, len(request.prompt), 1, running.computed, stop_id, error)  # type: ignore[arg-type]
        )
        running.over.set()

    @staticmethod
    def _token(request: GenerationRequest, token: int) -> GeneratedToken:
        if request.top_logprobs is None:
            return GeneratedToken(token)
        others: Sequence[tuple[int, float]] = [(token + i, -0.5 - i) for i in range(20)]
        return GeneratedToken(token, -0.5, others[: request.top_logprobs])
