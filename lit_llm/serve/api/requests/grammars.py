"""Grammars for JSON answers and for tool calls that must be made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lit_llm.serve.api.errors import ApiError, refused
from lit_llm.serve.api.requests.schema import NamedTool, ResponseFormat, Tool

LARGEST_SCHEMA = 256 * 2**10
"""Bytes of a schema as JSON."""
# A small model that may write white space anywhere can go on with it up to its limit.
_OPTIONS: Any = {"whitespace_flexible": False, "lenient": False}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def format_grammar(form: ResponseFormat | None, tools: Sequence[Tool] = ()) -> str | None:
    """The grammar for ``response_format``, or None for any text.

    Args:
        form: of the answer.
        tools: that the model may call; in place of an answer it may then write one call, in the
            form of `call_grammar`.

    Raises:
        ApiError: 400 for a schema that cannot be enforced; names the place as a JSON pointer.
    """
    if form is None or form.type == "text":
        return None
    schema, where = _ANY_OBJECT, "response_format"
    if form.type == "json_schema":
        schema, where = _schema_of(form), "response_format.json_schema.schema"
    grammar = _compiled(schema, where)
    if not tools or form.type == "json_object":
        return grammar
    calls, definitions = _calls([(at, tool, _enforced(tool)) for at, tool in enumerate(tools)])
    anything = [_hoisted(schema, "answer"), *calls]
    return _compiled({"anyOf": anything, "$defs": {"answer": schema, **definitions}}, where)


def _schema_of(form: ResponseFormat) -> dict[str, Any]:
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise refused(
            "response_format.json_schema.schema is required",
            param="response_format.json_schema.schema",
            code="missing_required_parameter",
        )
    return form.json_schema.schema_


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
    for at, tool in allowed:
        _compiled(tool.function.parameters or _ANY_OBJECT, f"tools[{at}].function.parameters")
    calls, definitions = _calls(
        [(at, tool, tool.function.parameters or _ANY_OBJECT) for at, tool in allowed]
    )
    schema = {"anyOf": calls} if len(calls) > 1 else calls[0]
    return _compiled({**schema, "$defs": definitions}, "tool_choice")


def _enforced(tool: Tool) -> dict[str, Any]:
    """The tool's parameters, or any object if they cannot be enforced: the call is not demanded."""
    try:
        _compiled(tool.function.parameters or _ANY_OBJECT, "")
    except ApiError:
        return _ANY_OBJECT
    return tool.function.parameters or _ANY_OBJECT


def _calls(
    tools: Sequence[tuple[int, Tool, dict[str, Any]]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The schemas of one call of each tool, and the definitions that they refer to.

    Args:
        tools: (number, tool, schema of its parameters).
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {**_ANY_OBJECT, **_hoisted(parameters, f"tool{at}")},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, tool, parameters in tools
    ]
    return calls, {f"tool{at}": parameters for at, _, parameters in tools}


def _hoisted(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """References of a schema as seen from a schema that has it as the definition ``name``."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: moved(item) for key, item in value.items()}
        if isinstance(found.get("$ref"), str) and found["$ref"].startswith("#"):
            found["$ref"] = f"#/$defs/{name}{found['$ref'][1:]}"
        return found

    return moved(schema)


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
