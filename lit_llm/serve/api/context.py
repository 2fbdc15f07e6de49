"""What the guard knows of a request, for the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from fastapi import Request

from lit_llm.people.keys import Key
from lit_llm.people.limits import WINDOW, Standing
from lit_llm.serve.api.service import Service

Result = TypeVar("Result")


def service_of(request: Request) -> Service:
    """The service behind the routes."""
    return cast(Service, request.app.state.service)


def key_of(request: Request) -> Key | None:
    """The key of the request, which the guard has checked."""
    return cast("Key | None", request.scope.get("state", {}).get("key"))


class ClientGone(Exception):
    """The client has left before its answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work``, whose client waits for it; if the client leaves, ``work`` is cancelled.

    Raises:
        ClientGone: it left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def limit_headers(request: Request) -> dict[str, str]:
    """OpenAI's ``x-ratelimit-*`` headers of a key with limits a minute."""
    key = key_of(request)
    if key is None:
        return {}
    limits = key.limits
    if limits.requests_per_minute is None and limits.tokens_per_minute is None:
        return {}
    standing = await service_of(request).gate.standing(key)
    found = {}
    for name, most, used in (
        ("requests", limits.requests_per_minute, len(standing.window)),
        ("tokens", limits.tokens_per_minute, sum(tokens for _, tokens in standing.window)),
    ):
        if most is not None:
            found[f"x-ratelimit-limit-{name}"] = str(most)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, most - used))
            found[f"x-ratelimit-reset-{name}"] = f"{_reset(standing):.3f}s"
    return found


def _reset(standing: Standing) -> float:
    """Seconds until the minute of the newest request ends, if no other one is admitted."""
    window = standing.window
    return max(0.0, window[-1][0] + WINDOW - time.time()) if window else 0.0


def ignored_header(ignored: list[str]) -> dict[str, str]:
    """``x-ignored``: the fields without effect."""
    printable = [name if name.isascii() and name.isprintable() else repr(name)[1:-1].encode(
        "ascii", "backslashreplace").decode() for name in ignored]  # fmt: skip
    return {"x-ignored": ", ".join(printable)} if ignored else {}
