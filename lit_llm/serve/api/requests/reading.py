"""Reads a request: the fields of its body, checked, and the names of what has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from lit_llm.serve.api.body import read_body
from lit_llm.serve.api.requests.fields import Field, Unknown, check_fields
from lit_llm.serve.api.requests.schema import checked
from lit_llm.serve.api.requests.unknown_keys import drop_unknown

Body = TypeVar("Body", bound=BaseModel)


async def read_request(
    request: Request, kind: type[Body], table: Mapping[str, Field], unknown: Unknown
) -> tuple[Body, dict[str, Any], list[str]]:
    """Read a body of ``kind``, whose fields ``table`` describes.

    Returns:
        The body, its fields as the client wrote them, and the names of what has no effect.

    Raises:
        ApiError: see `read_body`, `check_fields` and `checked`.
    """
    fields, ignored = check_fields(await read_body(request), table, unknown)
    body, more = read_fields(kind, fields, unknown)
    return body, fields, ignored + more


def read_fields(
    kind: type[Body], fields: dict[str, Any], unknown: Unknown
) -> tuple[Body, list[str]]:
    """`read_request` for fields that are read already."""
    ignored = drop_unknown(kind, fields) if unknown == "ignore" else []
    return checked(kind, fields), ignored
