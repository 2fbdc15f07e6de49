"""CallText: reads one tool call that a model writes as a JSON object, character by character."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Literal

_KEYS = ("name", "arguments", "parameters", "type", "function")
_FIRST_KEY = re.compile(r'\s*\{\s*"([^"\\]*)"')
# The usual form. Once it is there, the arguments can be delivered while they are written.
_OPENED = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{\Z'
)
_LONGEST_HEAD = 65_536
"""Characters of an object that are held back while it is not known to be a call."""

Verdict = Literal["open", "call", "no call"]


class CallText:
    """One JSON object ``{"name": ..., "arguments": {...}}`` while it arrives.

    ``parameters`` is Llama's name for ``arguments``. Until the name is known, the text is held: an
    object that is no call of a known tool is text of the answer. After that, the arguments are
    delivered as they are written. They are not checked: a model may write invalid JSON, as OpenAI's
    API says of its own models.

    Args:
        tools: names of the tools of the request.

    Attributes:
        verdict: "call" after the whole object, "no call" if it is other text, else "open".
        held: the text so far, to be delivered as content if it is no call.
        name: of the tool, once known.
    """

    def __init__(self, tools: Collection[str]):
        self.verdict: Verdict = "open"
        self.held = ""
        self.name: str | None = None
        self._tools = tools
        self._phase: Literal["head", "arguments", "tail"] = "head"
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, character: str) -> str:
        """Take a character; returns text of the arguments that is ready."""
        self._count(character)
        if self._phase == "head":
            self.held += character
            return self._head(character)
        closed = self._depth == 0 and not self._in_string
        if self._phase == "arguments":
            if self._depth == 1 and not self._in_string:
                self._phase = "tail"
            return character
        if closed:
            self.verdict = "call"
        return ""

    def _head(self, character: str) -> str:
        if character == "{" and (match := _OPENED.match(self.held)):
            name = _read_name(match[1])
            if name is None or name not in self._tools:
                self.verdict = "no call"
                return ""
            self.name, self._phase = name, "arguments"
            return "{"
        if character == '"' and (match := _FIRST_KEY.match(self.held)) and match[1] not in _KEYS:
            self.verdict = "no call"
        elif self._depth <= 0 and not self.held.isspace():
            return self._whole()
        elif len(self.held) > _LONGEST_HEAD:
            self.verdict = "no call"
        return ""

    def _whole(self) -> str:
        """Read an object in another form, once it is complete; returns its arguments."""
        found = _read_call(self.held)
        if found is None or found[0] not in self._tools:
            self.verdict = "no call"
            return ""
        self.name, arguments = found
        self.verdict = "call"
        return arguments

    def _count(self, character: str) -> None:
        """Follow strings and brackets."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1


def _read_name(text: str) -> str | None:
    """The name in quotes, or None if a model wrote what is not JSON, such as an unknown escape."""
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _read_call(text: str) -> tuple[str, str] | None:
    """(name, arguments as JSON text) of a complete object, or None."""
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict):
        return None
    inner = call.get("function", call)
    call = inner if isinstance(inner, dict) else {**call, "name": inner}
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        return None
    written = json.dumps(arguments, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in written):
        # The model spelled half a character with an escape. It has no bytes in UTF-8.
        written = json.dumps(arguments)
    return call["name"], written
