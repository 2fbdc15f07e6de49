"""Grammars for JSON answers and for tool calls that must be made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lit_llm.serve.api.errors import refused
from lit_llm.serve.api.schema import NamedTool, ResponseFormat, Tool

LARGEST_SCHEMA = 256 * 2**10
"""Bytes of a schema as JSON."""
# A small model that may write white space anywhere can go on with it up to its limit.
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": False}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def format_grammar(form: ResponseFormat | None) -> str | None:
    """The grammar for ``response_format``, or None for any text.

    Raises:
        ApiError: 400 for a schema that cannot be enforced; names the place as a JSON pointer.
    """
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return _compiled(_ANY_OBJECT, "response_format")
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise refused(
            "response_format.json_schema.schema is required",
            param="response_format.json_schema.schema",
            code="missing_required_parameter",
        )
    return _compiled(form.json_schema.schema_, "response_format.json_schema.schema")


def call_grammar(tools: Sequence[Tool], choice: str | NamedTool | None) -> str | None:
    """The grammar of one call that ``tool_choice`` demands, or None if it demands none.

    The answer is then a JSON object {"name", "arguments"} for every family of models.

    Raises:
        ApiError: 400: there is no such tool, or the parameters of one cannot be enforced.
    """
    if choice is None or choice in ("auto", "none"):
        return None
    allowed = list(enumerate(tools))
    if isinstance(choice, NamedTool):
        allowed = [(at, tool) for at, tool in allowed if tool.function.name == choice.function.name]
    if not allowed:
        raise refused(
            "tool_choice demands a tool that 'tools' does not have",
            param="tool_choice",
            code="invalid_value",
        )
    calls = []
    for at, tool in allowed:
        parameters = tool.function.parameters or _ANY_OBJECT
        _compiled(parameters, f"tools[{at}].function.parameters")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": {**_ANY_OBJECT, **_hoisted(parameters, at)},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    definitions = {f"tool{at}": tool.function.parameters or _ANY_OBJECT for at, tool in allowed}
    schema = {"anyOf": calls} if len(calls) > 1 else calls[0]
    return _compiled({**schema, "$defs": definitions}, "tool_choice")


def _hoisted(parameters: dict[str, Any], at: int) -> dict[str, Any]:
    """References of a tool's schema as seen from the schema of all calls."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: moved(item) for key, item in value.items()}
        if isinstance(found.get("$ref"), str) and found["$ref"].startswith("#"):
            found["$ref"] = f"#/$defs/tool{at}{found['$ref'][1:]}"
        return found

    return moved(parameters)


def _compiled(schema: dict[str, Any], where: str) -> str:
    """The grammar of a schema, checked."""
    from llguidance import LLMatcher

    text = json.dumps(schema)
    if len(text) > LARGEST_SCHEMA:
        raise refused(f"{where}: the schema is larger than {LARGEST_SCHEMA:,} bytes", param=where)
    grammar = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
    if error := " ".join(LLMatcher.validate_grammar(grammar).split()):
        keys = re.findall(r'"([^"]+)"', error) if error.startswith("Unimplemented") else []
        place = next((pointer for key in keys for pointer in _pointers(schema, key)), "#")
        raise refused(
            f"{where}: the schema cannot be enforced at {place}: {error}",
            param=where,
            code="unsupported_schema",
        )
    return grammar


def _pointers(schema: Any, key: str, at: str = "#") -> Iterator[str]:
    """JSON pointers (RFC 6901) of the places of a key."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            place = f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
            if name == key:
                yield place
            yield from _pointers(value, key, place)
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from _pointers(value, key, f"{at}/{number}")
