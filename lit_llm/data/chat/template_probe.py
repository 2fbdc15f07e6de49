"""TemplateProbe: facts about a chat template, found by rendering small conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from lit_llm.data.chat.messages import read_arguments, text_of
from lit_llm.data.chat.template import ChatTemplate, Message, unmarked
from lit_llm.errors import UserError

PROBE = "qwertzprobe"  # a word that no template contains, changes or escapes
_QUESTION: Message = {"role": "user", "content": "question"}
_TOOL: Message = {"role": "tool", "name": "name", "tool_call_id": "abcdefghi", "content": "42"}
_OBJECT = {"key": PROBE}
_TEXT = json.dumps(_OBJECT)


def with_probe(value: Any) -> Any:
    """``value`` with `PROBE` instead of every text in it; keys stay."""
    if isinstance(value, dict):
        return {key: with_probe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_probe(item) for item in value]
    return PROBE if isinstance(value, str) else value


class TemplateProbe:
    """Facts about a template, each computed on first use.

    Args:
        template: the template to test.
    """

    def __init__(self, template: ChatTemplate):
        self._template = template
        self._left_out: dict[str, bool] = {}

    def fit(self, message: Message) -> Message:
        """Convert a message to the template's form.

        Content becomes text or parts, and a tool's arguments become an object or text.
        """
        content = message.get("content")
        if isinstance(content, list) and not self._takes_parts:
            message = {**message, "content": text_of(message)}
        elif isinstance(content, str) and self._needs_parts:
            message = {**message, "content": [{"type": "text", "text": content}]}
        if "tool_calls" in message:
            calls = [self._fit_call(call) for call in message["tool_calls"]]
            message = {**self._calls[0], **message, "tool_calls": calls}
        return message

    def shows(self, messages: list[Message], arguments: Mapping[str, Any]) -> bool:
        """Whether the template renders `PROBE`, which is somewhere in the messages."""
        return PROBE in (self.render(messages, arguments) or "")

    def render(
        self, messages: list[Message], arguments: Mapping[str, Any] | None = None
    ) -> str | None:
        """Convert the messages to the template's form and render them; None if it refuses them."""
        return self._render([self.fit(message) for message in messages], arguments)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template renders tool schemas; true if it refuses the simplest schema."""
        schema = {
            "name": PROBE,
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        }
        tools = [{"type": "function", "function": schema}]
        text = self.render([_QUESTION], {"tools": tools})
        return text is None or PROBE in text

    def leaves_out(self, role: str) -> bool:
        """Whether the template accepts messages of this role but does not render their text."""
        if role not in self._left_out:
            said = {"role": role, "content": PROBE}
            messages = [said, _QUESTION]
            if role == "tool":
                messages = [_QUESTION, self._calling(self._calls[0], _OBJECT), {**_TOOL, **said}]
            text = self.render(messages)
            self._left_out[role] = text is not None and PROBE not in text.rpartition(_TEXT)[2]
        return self._left_out[role]

    @cached_property
    def turn_end(self) -> str | None:
        """The control token that ends an assistant's turn; None if the template writes none.

        It follows the answer whether or not another turn follows: Phi-3 renders ``<|end|>`` and, at
        the end of the conversation, a newline and ``<|endoftext|>``. If no token occurs in both
        places (gpt-oss: ``<|return|>`` at the end, ``<|end|>`` before another turn), it is the last
        of the tokens that follow the last answer without a gap.
        """
        answered = [_QUESTION, {"role": "assistant", "content": PROBE}]
        alone = self._after_probe(answered) or ""
        followed = self._after_probe([*answered, _QUESTION]) or ""
        ends = self._template.control_run(alone)
        common = len(os.path.commonprefix([alone, followed]))  # noqa: RUF071 -- no paths
        found = [match for match in ends if match.end() <= common]
        for match in ends if not found else []:
            if found and match.start() != found[-1].end():
                break
            found.append(match)
        return found[-1][0] if found else None

    @cached_property
    def call_end(self) -> str | None:
        """The control token that ends a tool call, if the template does not write `turn_end`.

        gpt-oss ends a call with ``<|call|>``, and Gemma 4 with the token that begins the tool's
        answer. None if this token also stands between two calls: it does not end the turn.
        """
        alone = self._after_probe([_QUESTION, self._example_call])
        ends = self._template.closing_run(alone or "")
        if not ends or self.turn_end in [None, *(match[0] for match in ends)]:
            return None
        calls = self._example_call["tool_calls"] * 2
        both = self.render([_QUESTION, {**self._example_call, "tool_calls": calls}]) or ""
        between = both.rpartition(PROBE)[0].rpartition(PROBE)[2]
        return None if ends[0][0] in between else ends[0][0]

    def next_turn(self, calls_tools: bool) -> str | None:
        """The control token that follows an assistant's turn if the template writes no `turn_end`.

        GLM's models end an answer with the token that begins the user's turn, and a tool call with
        the token that begins the tool's turn.
        """
        return self._next_turns[calls_tools] if self.turn_end is None else None

    @cached_property
    def _next_turns(self) -> tuple[str | None, str | None]:
        answered: list[Message] = [_QUESTION, {"role": "assistant", "content": PROBE}]
        called = [_QUESTION, self._example_call]
        found = []
        for messages, following in ((answered, _QUESTION), (called, _TOOL)):
            alone, followed = self._after_probe(messages), self._after_probe([*messages, following])
            begins = None
            if alone is not None and followed is not None and followed.startswith(alone):
                begins = self._template.control.match(followed, len(alone))
            bos = self._template.names.get("bos_token")
            found.append(None if begins is None or begins[0] == bos else begins[0])
        return found[0], found[1]

    @cached_property
    def always_opened(self) -> str | None:
        """A generation prompt that the template always writes after an answer, or "".

        Such a prompt meets three conditions. An answered conversation ends with it, and so does the
        same conversation with a further question. The text before it in the first rendering is the
        beginning of the second. And it also precedes the answer. None if the template always writes
        a text after an answer that does not precede an answer.
        """
        answered = [self.fit(_QUESTION), self.fit({"role": "assistant", "content": PROBE})]
        alone, followed = self._render(answered), self._render([*answered, answered[0]])
        try:
            asked = unmarked(self._template.render(answered, True))[0]
        except UserError:
            return ""
        if alone is None or followed is None or alone != asked or PROBE not in alone:
            return ""
        answer = alone.rindex(PROBE)
        backwards = [alone[::-1], followed[::-1]]
        # The prompt starts between ``first``, where the common suffix of both renderings begins,
        # and ``last``, where their common prefix ends: the header of the question may begin like
        # the prompt.
        first = len(alone) - len(os.path.commonprefix(backwards))  # noqa: RUF071 -- no paths
        first = max(first, answer + len(PROBE))
        last = len(os.path.commonprefix([alone, followed]))  # noqa: RUF071 -- no paths
        if first > last or last == len(alone):
            return ""
        header = alone[self._turn_begin(alone, first, last) :]
        if alone[:answer].rstrip().endswith(header.rstrip()):
            return header
        # Control tokens alone are the end of a text. Some templates write it after every
        # conversation.
        return None if self._template.control.sub("", header).strip() else ""

    def _turn_begin(self, text: str, first: int, last: int) -> int:
        """Position in text[first:last] where the next turn's header begins; an answer precedes it.

        Headers of two roles may have a common beginning. It is a control token ("<|im_start|>")
        that does not end the answer and also precedes the question, or the first characters of a
        line ("### ").
        """
        found = [match for match in self._template.control.finditer(text) if match.end() > first]
        for match in found:
            if match.start() < last < match.end():
                return max(match.start(), first)
        inside = [match for match in found if first <= match.start() and match.end() <= last]
        before = text.partition(str(_QUESTION["content"]))[0]
        if len(inside) > 1 and inside[-1][0] in before:
            return inside[-1].start()
        line = text.rfind("\n", inside[-1].end() if inside else first, last)
        return last if line < 0 else line + 1

    def _after_probe(self, messages: list[Message]) -> str | None:
        """Text rendered after `PROBE`; None if the template refuses the messages or drops it."""
        text = self.render(messages)
        return None if text is None or PROBE not in text else text.rpartition(PROBE)[2]

    def _render(
        self, messages: list[Message], arguments: Mapping[str, Any] | None = None
    ) -> str | None:
        try:
            return unmarked(self._template.render(messages, False, arguments))[0]
        except UserError:
            return None

    @cached_property
    def _takes_parts(self) -> bool:
        """Content may be a list of text parts.

        Parts render like the text, or the text does not render at all.
        """
        return self._as_parts is not None and (self._as_parts == self._as_text or self._needs_parts)

    @cached_property
    def _needs_parts(self) -> bool:
        """Content must be a list of parts, as in templates for images."""
        return PROBE not in (self._as_text or "") and PROBE in (self._as_parts or "")

    @cached_property
    def _as_text(self) -> str | None:
        return self._render([{"role": "user", "content": PROBE}])

    @cached_property
    def _as_parts(self) -> str | None:
        return self._render([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])

    @cached_property
    def _calls(self) -> tuple[Message, str]:
        """Form of a tool call: the fields that replace missing content, and the form of arguments.

        transformers omits null content. DeepSeek's templates require null, others a text. Arguments
        are "object" if the template writes them as JSON and would quote a text again, "text" if it
        fails on an object or prints it as Python does, and "any" if both work or neither works.
        """
        for empty in ({}, {"content": None}, {"content": ""}):
            as_object = self._render([_QUESTION, self._calling(empty, _OBJECT)]) or ""
            as_text = self._render([_QUESTION, self._calling(empty, _TEXT)]) or ""
            object_works = PROBE in as_object and str(_OBJECT) not in as_object
            text_works = _TEXT in as_text
            if object_works or text_works:
                form = (
                    "any" if object_works and text_works else "object" if object_works else "text"
                )
                return empty, form
        return {}, "any"

    @cached_property
    def _example_call(self) -> Message:
        """An answer that calls a tool, in the template's form."""
        return self._calling(self._calls[0], _TEXT if self._calls[1] == "text" else _OBJECT)

    @staticmethod
    def _calling(empty: Message, arguments: Any) -> Message:
        function = {"name": "name", "arguments": arguments}
        # Mistral requires ids of 9 characters.
        call = {
            "id": "abcdefghi",
            "type": "function",
            "function": function,
        }
        return {"role": "assistant", **empty, "tool_calls": [call]}

    def _fit_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        given, form = function.get("arguments"), self._calls[1]
        arguments = given
        if isinstance(arguments, str) and (form == "object" or not arguments.strip()):
            # In a prompt it may be a text that is no object; it stays as the model wrote it.
            with suppress(UserError):
                arguments = read_arguments(arguments, "")
        if isinstance(arguments, dict) and form == "text":
            arguments = json.dumps(arguments, ensure_ascii=False)
        if arguments is given:
            return call
        changed = {**function, "arguments": arguments}
        return {**call, "function": changed} if "function" in call else changed
