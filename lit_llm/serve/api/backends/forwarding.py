"""Forwards a chat to another server, with our keys, limits and records before it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from lit_llm.people.limits import LimitReached, Reservation
from lit_llm.people.store.records import NOBODY, RequestRecord
from lit_llm.serve.api.backends.backend import Backend
from lit_llm.serve.api.backends.mended_stream import MendedStream
from lit_llm.serve.api.context import ignored_header, key_of, service_of, unless_gone
from lit_llm.serve.api.errors import ApiError, broken, limit_reached, refused
from lit_llm.serve.api.event_stream import DONE, EventStream, event
from lit_llm.serve.api.requests.schema import ChatBody

DEFAULT_LIMIT = 4096
"""Longest answer of a request without a limit: the backend's context is not known here."""
_TEMPLATE_TOKENS = 16
"""Tokens that a template adds to each message, at most, for the reservation."""

log = logging.getLogger("lit_llm.serve")


class Forwarded:
    """One request to a backend, from admission to its record."""

    def __init__(self, request: Request, backend: Backend, body: ChatBody, fields: dict[str, Any]):
        self._service, self._key = service_of(request), key_of(request)
        self._backend, self._body = backend, body
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        limit = body.limit or DEFAULT_LIMIT
        self._fields = {**fields, "max_completion_tokens": limit}
        self._fields.pop("max_tokens", None)
        if body.stream:
            self._fields["stream_options"] = {"include_usage": True}
        # A token has at least one byte of text. Known only afterwards, the number is settled then.
        prompt = json.dumps([body.messages, fields.get("tools")], ensure_ascii=False)
        self._bound = len(prompt.encode()) + _TEMPLATE_TOKENS * (1 + len(body.messages))
        self._most = self._bound + body.n * limit
        self._digest = hashlib.sha256(prompt.encode()).hexdigest()
        self._started = time.time()
        self._first: float | None = None
        self._reservation: Reservation | None = None
        self._response: httpx.Response | None = None
        self._usage: dict[str, Any] | None = None
        self._written = 0
        self._reason, self._settled = "cancelled", False

    async def begin(self) -> None:
        """Reserve, and open the request.

        Raises:
            ApiError: as `Backend.open`; 429 at a limit of the key.
        """
        largest = None if self._key is None else self._key.limits.largest_request
        if largest is not None and self._most > largest:
            raise refused(
                f"the request may use {self._most:,} tokens; this key may use {largest:,}: shorten "
                "the prompt, or set max_completion_tokens",
                code="request_beyond_limit",
            )
        try:
            self._reservation = await self._service.gate.admit(self._key, self._most)
        except LimitReached as reached:
            raise limit_reached(reached) from None
        try:
            self._response = await self._backend.open(self._fields)
        except BaseException:
            self._settled = True
            await self._service.gate.release(self._reservation)
            raise

    @property
    def head(self) -> dict[str, Any]:
        """Fields of the answer that are ours."""
        kind = "chat.completion.chunk" if self._body.stream else "chat.completion"
        return {
            "id": self.id, "object": kind, "created": int(self._started),
            "model": self._backend.name,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        assert self._response is not None
        try:
            answer = json.loads(await self._response.aread())
            self._first, self._usage = time.time(), answer["usage"]
            for choice in answer["choices"]:
                calls = choice["message"].get("tool_calls")
                if calls and choice["finish_reason"] != "length":
                    choice["finish_reason"] = "tool_calls"
            self._reason = answer["choices"][0]["finish_reason"]
        except (httpx.TransportError, ValueError, KeyError, TypeError, IndexError):
            self._reason = "error"
            log.exception("backend %s: no answer", self._backend.name)
            raise broken() from None
        return {**answer, **self.head}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, mended."""
        assert self._response is not None
        mended = MendedStream(self.head, self._body.n)
        usage = {"usage": None} if self._body.include_usage else {}
        try:
            async for line in self._response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                for chunk in mended.push(json.loads(data)):
                    self._first = self._first or time.time()
                    self._written += len(json.dumps(chunk["choices"][0]["delta"]))
                    yield event({**chunk, **usage})
                self._usage = mended.usage
            last = list(mended.finish())
        except (httpx.TransportError, ValueError, AttributeError, TypeError, ApiError):
            self._reason = "error"
            log.exception("backend %s: its stream broke off", self._backend.name)
            raise broken() from None
        self._reason = mended.reason()
        await self.settle()
        for chunk in last:
            yield event({**chunk, **usage})
        if self._body.include_usage:
            yield event({**self.head, "choices": [], "usage": self._usage})
        yield DONE

    async def settle(self) -> None:
        """Close the connection, which cancels the answer there, and write the record, once."""
        if self._settled:
            return
        self._settled = True
        if self._response is not None:
            await self._response.aclose()
        prompt, completion = self._spent()
        record = RequestRecord(
            id=self.id, key=NOBODY if self._key is None else self._key.id, user=self._body.user,
            route="/v1/chat/completions", model=self._backend.name, weights="", sampling="{}",
            started=self._started, first_token=self._first, ended=time.time(),
            prompt_tokens=prompt, cached_tokens=0, completion_tokens=completion,
            reason=self._reason, error=None, prompt_digest=self._digest,
        )  # fmt: skip
        await asyncio.shield(self._service.gate.finish(record, self._reservation))

    def _spent(self) -> tuple[int, int]:
        """Tokens of prompt and answer; bytes of their text where the other server has not said."""
        usage = self._usage if isinstance(self._usage, dict) else {}
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int):
            return prompt, completion
        return min(self._bound, self._most), min(self._written, max(0, self._most - self._bound))


async def forward(
    request: Request, backend: Backend, body: ChatBody, fields: dict[str, Any], ignored: list[str]
) -> Response:
    """Answer a chat with a backend."""
    body.check_stream_options()
    forwarded = Forwarded(request, backend, body, fields)
    await forwarded.begin()
    headers = ignored_header(ignored)
    if body.stream:
        return EventStream(forwarded.events(), headers, forwarded.settle)
    try:
        answer = await unless_gone(request, forwarded.whole())
    finally:
        await forwarded.settle()
    return JSONResponse(answer, headers=headers)
