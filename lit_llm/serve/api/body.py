"""Reads the JSON body of a request, within limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request

from lit_llm.data.chat.messages import check_characters
from lit_llm.errors import UserError
from lit_llm.serve.api.errors import ApiError, refused

LARGEST_BODY = 4 * 2**20
"""Bytes of a request's body."""
SLOWEST = 60.0
"""Seconds that a body may take to arrive."""
DEEPEST = 64
"""Lists and objects of a body inside one another."""


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object in the body, without its null fields.

    OpenAI's API gives null to a field that may be absent the meaning of its absence.

    Raises:
        ApiError: 413 for a body beyond `LARGEST_BODY`; 408 for one beyond `SLOWEST`; 400 for
            anything but a JSON object of texts in Unicode.
    """
    try:
        async with asyncio.timeout(SLOWEST):
            body = parse_json(await _read(request))
    except TimeoutError:
        raise ApiError(
            408, f"the body took more than {SLOWEST:g} seconds", code="timeout"
        ) from None
    if not isinstance(body, dict):
        raise refused("the body must be a JSON object", code="invalid_json")
    return {key: value for key, value in body.items() if value is not None}


async def _read(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    pieces, size = [], 0
    if length.isdigit() and int(length) > LARGEST_BODY:
        raise _too_large()
    async for piece in request.stream():
        size += len(piece)
        if size > LARGEST_BODY:
            raise _too_large()
        pieces.append(piece)
    return b"".join(pieces)


def parse_json(text: bytes) -> Any:
    """Parse JSON of limited depth, with finite numbers and whole characters.

    Raises:
        ApiError: 400, says what is wrong.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        where = str(error).replace("\n", " ")
        raise refused(f"the body is not valid JSON: {where}", code="invalid_json") from None
    level, depth = [value], 0
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
    try:
        check_characters(value, "the body")
    except UserError as error:
        raise refused(str(error), code="invalid_characters") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _too_deep() -> ApiError:
    return refused(
        f"the body's lists and objects are nested deeper than {DEEPEST}", code="invalid_json"
    )


def _too_large() -> ApiError:
    return ApiError(
        413, f"the body is larger than {LARGEST_BODY:,} bytes", code="request_too_large"
    )
