"""Keys inside the fields of a request that the API does not know, for ``--unknown ignore``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from lit_llm.serve.api.requests.prompts import MESSAGE_KEYS
from lit_llm.serve.api.requests.response_input import ITEM_KEYS

_PART_KEYS = ("type", "text")


def drop_unknown(kind: type[BaseModel], fields: dict[str, Any]) -> list[str]:
    """Remove the keys that ``kind``, the messages and their text parts do not know, in place.

    Returns:
        Their paths without the numbers of list elements, such as "messages.content.cache_control",
        each once.
    """
    found: dict[str, None] = {}
    for message in _objects(fields.get("messages")):
        role = message.get("role")
        known = MESSAGE_KEYS.get(role) if isinstance(role, str) else None
        if known is not None:
            _drop(message, {"role", *known}, "messages", found)
        for part in _objects(message.get("content")):
            if part.get("type") == "text":
                _drop(part, _PART_KEYS, "messages.content", found)
    for item in _objects(fields.get("input")):
        if item.get("type", "message") == "message":
            _drop(item, ITEM_KEYS, "input", found)
    while _drop_refused(kind, fields, found):
        pass
    return list(found)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _drop(value: dict[str, Any], known: Collection[str], path: str, found: dict[str, None]) -> None:
    for key in value.keys() - set(known):
        del value[key]
        found[f"{path}.{key}"] = None


def _drop_refused(kind: type[BaseModel], fields: dict[str, Any], found: dict[str, None]) -> bool:
    """Remove the keys for which ``kind`` refuses the fields; returns whether there were any."""
    try:
        kind.model_validate(fields)
        return False
    except ValidationError as error:
        refused = [one["loc"] for one in error.errors() if one["type"] == "extra_forbidden"]
    removed = False
    for *place, key in refused:
        value: Any = fields
        named = []
        for step in place:
            # Names of types, of a field that has several, are steps too.
            if isinstance(step, int) or (isinstance(value, dict) and step in value):
                value = value[step]
                named += [] if isinstance(step, int) else [step]
        if isinstance(value, dict) and key in value:
            del value[key]
            removed = True
            found[".".join([*named, str(key)])] = None
    return removed
