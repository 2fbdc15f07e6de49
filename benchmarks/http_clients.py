"""Clients of OpenAI's API that take the times of a stream's pieces, at little cost.

The client shares the processor with the server that it measures. So it speaks HTTP on plain sockets
and reads no more of an event than it needs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """The times of one request, by the clock.

    Attributes:
        sent: when the request was written.
        pieces: when each piece of text arrived.
        finish_reason: of the answer.
    """

    sent: float
    pieces: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


async def complete(port: int, body: dict[str, Any]) -> Answer:
    """Stream one completion from a server on this machine.

    Raises:
        RuntimeError: the server refused it, or the stream has no end.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    answer = Answer(time.perf_counter())
    writer.write(head.encode() + content)
    await writer.drain()
    try:
        async for event in _events(reader):
            if "error" in event:
                raise RuntimeError(f"port {port}: {event['error']}")
            for choice in event.get("choices", ()):
                if choice.get("text"):
                    answer.pieces.append(time.perf_counter())
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    finally:
        writer.close()
    if answer.finish_reason is None:
        raise RuntimeError(f"port {port}: a stream ended without a reason")
    return answer


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, until "[DONE]" or its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    chunked = b"transfer-encoding: chunked" in head.lower()
    status = head.splitlines()[0].decode()
    if " 200 " not in status:
        raise RuntimeError(f"{status}: {(await reader.read(2000)).decode()}")
    rest = b""
    while True:
        if chunked:
            size = int((await reader.readline()).strip() or b"0", 16)
            piece = (await reader.readexactly(size + 2))[:-2] if size else b""
        else:
            piece = await reader.read(1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)


def at_once(port: int, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
    """Send all requests at the same time; return their answers and the seconds that all took."""

    async def run() -> list[Answer]:
        return await asyncio.gather(*(complete(port, body) for body in bodies))

    began = time.perf_counter()
    answers = asyncio.run(run())
    return answers, time.perf_counter() - began


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values are."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
