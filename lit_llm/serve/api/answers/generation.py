"""Generation: the answers to a request, from admission to the record of their end."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from lit_llm.errors import UserError
from lit_llm.models.engine.requests import (
    Event,
    Finished,
    GeneratedToken,
    GenerationRequest,
    Handle,
    QueueFull,
    SamplingSettings,
)
from lit_llm.people.keys import Key
from lit_llm.people.limits import LimitReached, Reservation
from lit_llm.people.store.records import NOBODY, RequestRecord
from lit_llm.serve.api.answers.answer_parser import AnswerParser
from lit_llm.serve.api.answers.deltas import Content
from lit_llm.serve.api.answers.reader import AnswerReader, Update
from lit_llm.serve.api.errors import ApiError, broken, limit_reached, overloaded, refused, stopping
from lit_llm.serve.api.service import ServedModel, Service

log = logging.getLogger("lit_llm.serve")


@dataclass(frozen=True)
class Job:
    """What a route wants to have generated.

    Attributes:
        id: of the answer.
        route: path of the API.
        model: answers.
        prompts: ids of each prompt.
        limit: longest answer in tokens; None: the rest of the context.
        n: number of answers to each prompt.
        sampling, seed: of the draw.
        stop: texts that end an answer.
        stop_ids: tokens that end it.
        top_logprobs: see `GenerationRequest`.
        grammar: see `GenerationRequest`.
        parser: makes the parser of an answer.
        user: the client's name for its user.
    """

    id: str
    route: str
    model: ServedModel
    prompts: Sequence[Sequence[int]]
    limit: int | None
    n: int
    sampling: SamplingSettings
    seed: int
    stop: Sequence[str]
    stop_ids: Sequence[int]
    top_logprobs: int | None
    grammar: str | None
    parser: Callable[[], AnswerParser]
    user: str | None

    @property
    def answers(self) -> int:
        """Number of all answers. Answer i is to prompt i // n, as in OpenAI's API."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together."""
        return sum(map(len, self.prompts))


@dataclass(frozen=True)
class Usage:
    """Tokens of all answers together; each prompt counts once."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    def json(self) -> dict[str, object]:
        """In the form of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class Generation:
    """Answers that the engine computes.

    After `begin`, `settle` must be called whatever happens.

    Args:
        service: the server.
        job: what is generated.
        key: whose limits and records count.
    """

    def __init__(self, service: Service, job: Job, key: Key | None):
        self._service, self._job, self._key = service, job, key
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event]] = deque()
        self._wake = asyncio.Event()
        self._readers = [
            AnswerReader(job.model.tokenizer, job.stop, job.parser()) for _ in range(job.answers)
        ]
        self._handles: list[Handle] = []
        self._reservation: Reservation | None = None
        self._ended: dict[int, str] = {}
        self._answer: list[list[str]] = [[] for _ in range(job.answers)]
        self._cached = [0] * len(job.prompts)
        self._started, self._first_token = time.time(), None  # type: float, float | None
        self._error: str | None = None
        self._settled = False

    async def begin(self) -> None:
        """Check the lengths, reserve and submit.

        Raises:
            ApiError: 400 for a prompt that does not fit; 429 at a limit or a full queue; 503 while
                the server stops.
        """
        job, size = self._job, self._job.model.max_seq_len
        longest = max(map(len, job.prompts))
        if longest >= size:
            raise refused(
                f"the prompt has {longest:,} tokens; the context of {job.model.name!r} has "
                f"{size:,}, and the answer needs some of them",
                param="messages" if "chat" in job.route else "prompt",
                code="context_length_exceeded",
            )
        rooms = [size - len(prompt) for prompt in job.prompts]
        limits = self._within_key([min(room, job.limit or room) for room in rooms])
        if not self._service.ready():
            raise stopping() if self._service.draining else broken_engine()
        try:
            self._reservation = await self._service.gate.admit(self._key, self._most_tokens(limits))
        except LimitReached as reached:
            raise limit_reached(reached) from None
        self._service.metrics.running.inc()
        self._service.waiting.add(self._wake.set)
        try:
            for answer in range(job.answers):
                self._handles.append(self._submit(answer, limits[answer // job.n]))
        except QueueFull as full:
            await self._undo()
            raise overloaded(
                f"the server is full: {full}" if str(full) else "the server is full"
            ) from None
        except UserError as error:
            await self._undo()
            raise refused(str(error)) from None
        except BaseException:
            await self._undo()
            raise

    def _within_key(self, limits: list[int]) -> list[int]:
        """The answers' limits, by prompt, under the largest request that the key may ever make."""
        job = self._job
        largest = None if self._key is None else self._key.limits.largest_request
        wanted = self._most_tokens(limits)
        if largest is None or wanted <= largest:
            return limits
        most = (largest - job.prompt_tokens) // job.answers
        if job.limit is None and most >= 1:
            return [min(limit, most) for limit in limits]
        # A client would repeat a 429 for ever.
        raise refused(
            f"the request may use {wanted:,} tokens; this key may use "
            f"{largest:,} in its whole time: shorten the prompt or the answer",
            code="request_beyond_limit",
        )

    def _most_tokens(self, limits: list[int]) -> int:
        """Tokens of the prompts and of the longest answers, whose limits are given by prompt."""
        return self._job.prompt_tokens + self._job.n * sum(limits)

    def _submit(self, answer: int, limit: int) -> Handle:
        job, service = self._job, self._service
        request = GenerationRequest(
            prompt=job.prompts[answer // job.n],
            max_new_tokens=limit,
            sampling=job.sampling,
            seed=job.seed,
            choice=answer % job.n,
            stop_ids=job.stop_ids,
            top_logprobs=job.top_logprobs,
            grammar=job.grammar,
            adapter=job.model.adapter,
            scope=self._key.id if self._key and service.prefix_scope == "key" else "",
        )

        def on_event(event: Event) -> None:
            self._events.append((answer, event))
            # RuntimeError: the event loop has ended before the engine.
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:
                return

        return job.model.engine.submit(request, on_event)

    async def updates(self) -> AsyncIterator[Update]:
        """What is new of the answers, until all have ended.

        Raises:
            ApiError: the engine failed, or the server stops.
        """
        while not self.ended:
            await self._wake.wait()
            self._wake.clear()
            fresh: dict[int, Update] = {}
            while self._events:
                choice, event = self._events.popleft()
                if choice in self._ended:
                    continue  # tokens between a stop text and the cancellation
                update = fresh.setdefault(choice, Update(choice))
                if isinstance(event, GeneratedToken):
                    self._token(update, event)
                else:
                    self._finished(update, event)
            for update in fresh.values():
                yield update
            if self._service.failed and not self.ended:
                self._error = "the engine is dead"
                raise broken_engine()

    def _token(self, update: Update, token: GeneratedToken) -> None:
        reader = self._readers[update.choice]
        if self._first_token is None:
            self._first_token = time.time()
            self._service.metrics.first_token.observe(self._first_token - self._started)
        update.deltas += reader.read(token)
        update.tokens.append(token)
        if reader.stopped:
            self._handles[update.choice].cancel()
            self._end(update, "stop")

    def _finished(self, update: Update, event: Finished) -> None:
        prompt = update.choice // self._job.n
        self._cached[prompt] = max(self._cached[prompt], event.cached_tokens)
        if event.reason == "error":
            self._error = event.error or "unknown"
            log.error("%s: the engine failed: %s", self._job.id, self._error)
            raise broken()
        if event.reason == "cancelled":
            self._error = "the server stopped"
            raise stopping()
        self._end(update, event.reason)

    def _end(self, update: Update, reason: str) -> None:
        deltas, update.finish = self._readers[update.choice].finish(reason)
        update.deltas += deltas
        self._ended[update.choice] = update.finish

    def keep_text(self, update: Update) -> None:
        """Keep the content of an update for the record, if texts are kept."""
        if self._service.store_texts:
            self._answer[update.choice] += [
                delta.text for delta in update.deltas if isinstance(delta, Content)
            ]

    @property
    def ended(self) -> bool:
        """Whether all answers have ended."""
        return len(self._ended) == self._job.answers

    def usage(self) -> Usage:
        """Tokens until now."""
        return Usage(
            self._job.prompt_tokens,
            sum(self._cached),
            sum(reader.tokens for reader in self._readers),
            sum(reader.reasoning_tokens for reader in self._readers),
        )

    async def settle(self) -> None:
        """Cancel what still runs, give back what was not used, and write the record, once.

        Call it before the client is told of the end: what it was told is then on disk.
        """
        if self._settled:
            return
        self._settled = True
        for choice, handle in enumerate(self._handles):
            if choice not in self._ended:
                handle.cancel()
        job, used, metrics = self._job, self.usage(), self._service.metrics
        reason = self._ended[0] if self.ended else "error" if self._error else "cancelled"
        metrics.running.dec()
        self._service.waiting.discard(self._wake.set)
        metrics.answers.labels(job.model.name, reason).inc(job.answers)
        metrics.prompt_tokens.labels(job.model.name).inc(used.prompt)
        metrics.cached_tokens.labels(job.model.name).inc(used.cached)
        metrics.completion_tokens.labels(job.model.name).inc(used.completion)
        metrics.duration.observe(time.time() - self._started)
        await self._write(reason)

    async def _undo(self) -> None:
        """Take a begun submission back: it costs nothing."""
        self._settled = True
        for handle in self._handles:
            handle.cancel()
        self._service.metrics.running.dec()
        self._service.waiting.discard(self._wake.set)
        await self._service.gate.release(self._reservation)

    async def _write(self, reason: str) -> None:
        job, used = self._job, self.usage()
        texts = self._service.store_texts
        # -1 stands between two prompts.
        ids = list(job.prompts[0])
        for prompt in job.prompts[1:]:
            ids += [-1, *prompt]
        record = RequestRecord(
            id=job.id,
            key=NOBODY if self._key is None else self._key.id,
            user=job.user,
            route=job.route,
            model=job.model.name,
            weights=job.model.digest,
            sampling=json.dumps({**dataclasses.asdict(job.sampling), "seed": job.seed}),
            started=self._started,
            first_token=self._first_token,
            ended=time.time(),
            prompt_tokens=used.prompt,
            cached_tokens=used.cached,
            completion_tokens=used.completion,
            reason=reason,
            error=self._error,
            prompt_digest=hashlib.sha256(array("q", ids).tobytes()).hexdigest(),
            prompt_text="\n".join(map(job.model.tokenizer.decode, job.prompts)) if texts else None,
            answer_text="\n".join("".join(pieces) for pieces in self._answer) if texts else None,
        )
        try:
            # A client that leaves now must not leave the record unwritten.
            await asyncio.shield(self._service.gate.finish(record, self._reservation))
        except Exception:
            log.exception("%s: the record could not be written", job.id)
            raise broken() from None


def broken_engine() -> ApiError:
    """The engine does not run: status 503; another process may answer."""
    return ApiError(503, "the engine has failed; the server ends", code="engine_failed",
                    retry_after=5.0)  # fmt: skip
