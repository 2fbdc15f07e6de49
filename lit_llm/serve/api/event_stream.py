"""EventStream: server-sent events that end well, whatever the client does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lit_llm.serve.api.errors import ApiError, broken

HEARTBEAT = 15.0
"""Seconds without an event after which a comment is sent, so that proxies keep the connection."""
MOST_UNREAD = 256 * 2**10
"""Bytes that wait for a slow reader before its answer is cancelled."""
DONE = b"data: [DONE]\n\n"

log = logging.getLogger("lit_llm.serve")


def event(data: Any, name: str | None = None) -> bytes:
    """An event with JSON data, and with a name as the Responses API has them."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # U+2028 and its like are line ends to some readers of events.
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode()


class EventStream(Response):
    """An ASGI answer that sends events.

    The events are made in a task of their own and wait in a buffer of `MOST_UNREAD` bytes, so that
    a slow reader delays nobody. If the reader leaves or is too slow, the generator is closed. An
    error inside it becomes one event, then the end.

    Args:
        events: yields whole events.
        headers: of the answer.
        on_end: called at the end, also of a stream that never began.
        heartbeat: see `HEARTBEAT`.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        on_end: Callable[[], Awaitable[None]],
        heartbeat: float = HEARTBEAT,
    ):
        super().__init__()
        self._events, self._own_headers, self._heartbeat = events, headers, heartbeat
        self._on_end = on_end
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._more, self._over, self._too_slow = asyncio.Event(), False, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end, the client leaves, or it reads too slowly."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._make(), self._send(send), _disconnected(receive))
        ]
        making, sending, leaving = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if making.done() and not self._too_slow:
                await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()
            await self._on_end()
        if sending.done() and not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _make(self) -> None:
        """Fill the buffer."""
        try:
            async for data in self._events:
                self._put(data)
        except ApiError as error:
            self._put(event(error.body()))
            self._put(DONE)
        except TooSlow:
            log.warning("a stream is cancelled: its client reads too slowly")
            self._too_slow = True
        except Exception:
            log.exception("a stream failed")
            self._put(event(broken().body()))
            self._put(DONE)
        finally:
            self._over = True
            self._more.set()

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MOST_UNREAD:
            raise TooSlow
        self._waiting.append(data)
        self._more.set()

    async def _send(self, send: Send) -> None:
        """Empty the buffer to the client."""
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would keep the events back
            **self._own_headers,
        }
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        while True:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._size -= len(data)
            if self._over:
                break
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), self._heartbeat)
                continue
            await send({"type": "http.response.body", "body": b": \n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class TooSlow(Exception):
    """The client reads more slowly than its answer is written."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
