"""Sends the answers of a generation, whole or as events, and ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from lit_llm.serve.api.answers.generation import Generation
from lit_llm.serve.api.context import ignored_header, limit_headers, unless_gone
from lit_llm.serve.api.event_stream import EventStream


async def streamed(
    request: Request,
    generation: Generation,
    events: AsyncGenerator[bytes, None],
    ignored: list[str],
) -> Response:
    """Answer with events; ``ignored`` names the fields without effect."""
    headers = await _headers(request, generation, ignored)
    return EventStream(events, headers, generation.settle)


async def whole(
    request: Request,
    generation: Generation,
    content: Coroutine[Any, Any, dict[str, Any]],
    ignored: list[str],
) -> Response:
    """Answer with one JSON object, once the record of the request is on disk."""
    headers = await _headers(request, generation, ignored)
    try:
        answer = await unless_gone(request, content)
    finally:
        await generation.settle()
    return JSONResponse(answer, headers=headers)


async def _headers(request: Request, generation: Generation, ignored: list[str]) -> dict[str, str]:
    try:
        return ignored_header(ignored) | await limit_headers(request)
    except BaseException:
        await generation.settle()
        raise
