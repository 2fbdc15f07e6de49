"""AnswerParser: splits the text of an answer into thoughts, content and tool calls.

One state machine reads streamed and whole answers alike. It takes one character at a time, so its
result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lit_llm.serve.api.answers.call_text import CallText
from lit_llm.serve.api.answers.deltas import CallArguments, CallBegin, Content, Delta, Reasoning

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class CallSyntax:
    """How a family of models writes tool calls; each call is a JSON object.

    Attributes:
        opener: text before a call, or before the first one of a list.
        closer: text after each call, or None.
        separators: characters that may stand between two calls of a list.
        bare: an object at the very beginning of the answer is a call too, without the opener.
    """

    opener: str
    closer: str | None
    separators: str
    bare: bool


HERMES = CallSyntax("<tool_call>", "</tool_call>", "", bare=False)
"""Hermes, Qwen: <tool_call>{...}</tool_call>, once for each call."""
LLAMA3 = CallSyntax("<|python_tag|>", None, ";", bare=True)
"""Llama 3: {...}; {...} as the whole answer, with or without <|python_tag|>."""
MISTRAL = CallSyntax("[TOOL_CALLS]", None, "[,]", bare=False)
"""Mistral: [TOOL_CALLS][{...}, {...}]."""
PLAIN = CallSyntax("", None, ",;", bare=True)
"""A JSON object as the whole answer."""


def syntax_of(template: str) -> CallSyntax:
    """The syntax of the tool calls that a chat template renders."""
    for syntax in (HERMES, MISTRAL):
        if syntax.opener in template:
            return syntax
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return LLAMA3
    return PLAIN


def new_call_id() -> str:
    """An id as OpenAI writes them; Mistral's templates want nine letters or digits at its end."""
    return f"call_{secrets.token_hex(12)}"


class AnswerParser:
    """Reads the text of one answer.

    White space around thoughts and calls belongs to neither and is left out. All other text is
    delivered: the content of an answer without thoughts and calls is the text itself.

    Args:
        reasoning: whether the model writes its thoughts between <think> and </think>.
        thinking: whether the prompt ends inside the thoughts.
        syntax: how the model calls tools. None: it has none to call.
        tools: names of the tools.
        forced: whether the whole answer is one call, as a grammar makes it.
        new_id: makes the id of a call.

    Attributes:
        in_reasoning: whether the text so far ends inside the thoughts.
        calls: number of complete calls.
        begun: number of calls of which a part was delivered.
    """

    def __init__(
        self,
        reasoning: bool = False,
        thinking: bool = False,
        syntax: CallSyntax | None = None,
        tools: Collection[str] = (),
        forced: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ):
        self.calls = self.begun = 0
        self._syntax, self._tools, self._new_id = syntax, tools, new_id
        self._held = ""
        # Content that may still be the white space before a call.
        self._space = ""
        self._call: CallText | None = None
        self._found: list[Delta] = []
        self._at_beginning, self._thought_shown = True, False
        # The text before the object of a call, which is delivered again if there is no call.
        self._opened = ""
        self._state: Callable[[str], None] = self._content
        if forced:
            self._syntax = PLAIN
        elif thinking:
            self._state = self._thoughts
        elif reasoning:
            self._state = self._start

    @property
    def in_reasoning(self) -> bool:
        """See the class."""
        return self._state == self._thoughts

    def push(self, text: str) -> list[Delta]:
        """Take the next piece of text; returns what it completes."""
        for character in text:
            self._state(character)
        return self._take()

    def finish(self) -> list[Delta]:
        """The answer is over; returns what was held back."""
        if self._state == self._thoughts:
            self._emit(Reasoning(self._held.rstrip()))
        elif self._state == self._in_call and self._call is not None and self._call.name is None:
            self._emit(Content(self._space + self._opened + self._call.held))
        elif self._state == self._after_call:
            self._emit(Content(self._held.strip()))
        elif self._state != self._in_call:
            self._emit(Content(self._space + self._held))
        self._held = self._space = ""
        return self._take()

    def _take(self) -> list[Delta]:
        """Deltas found so far; neighbours of one kind are joined."""
        joined: list[Delta] = []
        for kind, group in itertools.groupby(
            self._found, key=lambda d: (type(d), getattr(d, "index", 0))
        ):
            deltas = list(group)
            if kind[0] is CallBegin:
                joined += deltas
            elif text := "".join(d.text for d in deltas if not isinstance(d, CallBegin)):
                first = deltas[0]
                if isinstance(first, CallArguments):
                    joined.append(CallArguments(first.index, text))
                else:
                    joined.append(Content(text) if kind[0] is Content else Reasoning(text))
        self._found = []
        return joined

    def _emit(self, delta: Delta) -> None:
        self._found.append(delta)

    def _start(self, character: str) -> None:
        """At the beginning of the answer, where <think> may follow after white space."""
        self._held += character
        begun = self._held.lstrip()
        if begun == THINK:
            self._held, self._state = "", self._thoughts
        elif not THINK.startswith(begun):
            self._replay(self._content)

    def _thoughts(self, character: str) -> None:
        """Inside the thoughts; white space at both ends is left out."""
        self._held += character
        if self._held.endswith(END_THINK):
            self._emit(Reasoning(self._held.removesuffix(END_THINK).rstrip()))
            self._held, self._state = "", self._after_block
            return
        keep = _overlap(self._held, END_THINK)
        ready = self._held[: len(self._held) - keep].rstrip()
        if not ready:
            self._held = self._held if self._thought_shown else self._held.lstrip()
            return
        self._thought_shown = True
        self._emit(Reasoning(ready))
        self._held = self._held[len(ready) :]

    def _after_block(self, character: str) -> None:
        """After thoughts or a call: white space is left out."""
        if not character.isspace():
            self._state = self._content
            self._content(character)

    def _content(self, character: str) -> None:
        """In the text of the answer, where a call may begin."""
        if self._syntax is None:
            self._emit(Content(character))
            return
        opener = self._syntax.opener
        if self._syntax.bare and self._at_beginning and not self._held:
            if character.isspace():
                self._space += character
                return
            if character == "{":
                self._begin_call("")
                self._in_call(character)
                return
        self._held += character
        if opener and self._held.endswith(opener):
            self._say(self._held.removesuffix(opener))
            self._held = ""
            self._begin_call(opener)
            return
        keep = _overlap(self._held, opener)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def _say(self, text: str) -> None:
        """Deliver content, except for white space at its end, which a call may follow."""
        if not text:
            return
        words = (self._space + text).rstrip()
        rest = (self._space + text)[len(words) :]
        if words:
            self._at_beginning = False
            self._emit(Content(words))
        self._space = rest

    def _begin_call(self, opener: str) -> None:
        self._opened = opener
        self._call = CallText(self._tools)
        self._state = self._in_call

    def _in_call(self, character: str) -> None:
        call, syntax = self._call, self._syntax
        assert call is not None and syntax is not None
        # Before the object there may be white space, and the bracket of a list.
        if not call.held and (character.isspace() or character in syntax.separators):
            self._opened += character
            return
        was_named = call.name is not None
        arguments = call.push(character)
        if call.verdict == "no call":
            text = self._opened + call.held
            self._call, self._state = None, self._content
            self._say(text)
            return
        if call.name is not None and not was_named:
            self._space = ""
            self._at_beginning = False
            self._emit(CallBegin(self.begun, self._new_id(), call.name))
            self.begun += 1
        if arguments:
            self._emit(CallArguments(self.begun - 1, arguments))
        if call.verdict == "call":
            self.calls += 1
            self._call, self._held = None, ""
            self._state = self._after_call

    def _after_call(self, character: str) -> None:
        """After a call: its closer, or another call of the list."""
        syntax = self._syntax
        assert syntax is not None
        if syntax.closer is not None:
            self._held += character
            begun = self._held.lstrip()
            if begun == syntax.closer:
                self._held, self._state = "", self._after_block
            elif not syntax.closer.startswith(begun):
                self._replay(self._after_block)
            return
        if character.isspace() or character in syntax.separators:
            return
        if character == "{":
            self._begin_call("")
            self._in_call(character)
            return
        self._state = self._content
        self._content(character)

    def _replay(self, state: Callable[[str], None]) -> None:
        """Read the held text again in another state."""
        text, self._held = self._held, ""
        self._state = state
        for character in text:
            self._state(character)


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``marker``."""
    longest = min(len(marker) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if marker.startswith(text[-n:])), 0)
