"""AnswerFinder: which characters of a rendered conversation the assistant speaks in its last
message."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from lit_llm.data.messages import REASONING, thoughts_of
from lit_llm.data.template import ChatTemplate, Message, unmarked
from lit_llm.data.template_probe import PROBE, TemplateProbe
from lit_llm.errors import UserError

Span = tuple[int, int]
# A generation prompt that opens a block of thoughts: R1's ends with "<think>" and a newline.
_OPENED_THOUGHTS = re.compile(r"<(think\w*)>\s*\Z")
# One that closes them too, so that the answer comes without: Qwen3's with enable_thinking off.
_NO_THOUGHTS = re.compile(r"<(think\w*)>\s*</\1>\s*\Z")


class AnswerFinder:
    """Puts an answer, as a template renders it, behind the prompt that a server sends for it.

    Args:
        template: what is rendered.
        probe: what is known of it.
    """

    def __init__(self, template: ChatTemplate, probe: TemplateProbe):
        self._template, self._probe = template, probe

    def find(
        self, messages: list[Message], arguments: Mapping[str, Any], prompt: str
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and which characters the assistant speaks in its last message.

        The text begins with ``prompt``, the messages before it with the generation prompt, wherever
        the answer can be found. With ``{% generation %}`` marks they say what is spoken. Where
        neither is possible, nothing is.

        Raises:
            UserError: the template refuses the messages.
        """
        text, marked = unmarked(self._template.render(messages, False, arguments))
        begin = len(prompt)
        if not text.startswith(prompt):
            found = self._behind(prompt, text, messages, arguments)
            if (
                found is not None
            ):  # the characters from ``at`` on stand behind the prompt and ``added``
                at, added = found
                moved = len(prompt) + len(added) - at
                text = prompt + added + text[at:]
                marked = [(a + moved, b + moved) for a, b in marked if b > at]
                marked[:1] = [(begin, b) for _, b in marked[:1]] if added else marked[:1]
            else:
                before = unmarked(self._template.render(messages[:-1], True, arguments))[1]
                marked = marked[len(before) :]
                if not marked:
                    return text, []
                begin = marked[0][0]
        end = begin + self._spoken(text[begin:])
        if self._template.marks_answers:
            return text, [(max(a, begin), min(b, end)) for a, b in marked if begin < b and a < end]
        if end == len(text):
            text += self._probe.next_turn("tool_calls" in messages[-1]) or ""
            end = len(text)
        return text, [(begin, end)]

    def _behind(
        self, prompt: str, text: str, messages: list[Message], arguments: Mapping[str, Any]
    ) -> tuple[int, str] | None:
        """(where in ``text`` the last answer begins, what stands before it), for a text that begins
        otherwise.

        A prompt may open thoughts that the template does not render (R1): they are added and
        closed. Or it may say that there are none, where the template renders an answer without
        thoughts as the answer alone. Or the template renders earlier turns in another way once this
        answer is there (gpt-oss drops thoughts between tool calls): the answer is what follows the
        last generation prompt in front of its words.
        """
        opened = _OPENED_THOUGHTS.search(prompt)
        if opened and text.startswith(prompt[: opened.start()]):
            tag, rest = opened[1], text[opened.start() :]
            if rest.startswith(f"<{tag}>"):  # the thoughts are there, with other white space
                return len(text) - len(rest.removeprefix(f"<{tag}>").lstrip()), ""
            thoughts = self._template.defused(thoughts_of(messages[-1]))
            return len(text) - len(rest.lstrip("\n")), f"{thoughts}\n</{tag}>\n\n"
        none = _NO_THOUGHTS.search(prompt)
        if none and text.startswith(prompt[: none.start()]) and not thoughts_of(messages[-1]):
            rest = text[none.start() :]
            answer = re.sub(rf"\A<{none[1]}>\s*</{none[1]}>", "", rest).lstrip("\n")
            return len(text) - len(answer), ""
        asked = unmarked(self._template.render(messages[:-1], False, arguments))[0]
        header = prompt.removeprefix(asked) if prompt.startswith(asked) else ""
        if not header:
            return None
        changed = {key: PROBE for key in ("content", *REASONING) if key in messages[-1]}
        other = self._probe.render([*messages[:-1], {**messages[-1], **changed}], arguments) or ""
        # Both renderings are equal up to the answer's first words.
        common = len(os.path.commonprefix([text, other]))  # noqa: RUF071 -- no paths
        at = text.rfind(header, 0, common)
        return None if at < 0 else (at + len(header), "")

    def _spoken(self, text: str) -> int:
        """Characters of ``text`` up to and with the token that ends the turn; what follows is
        layout."""
        closing: list[re.Match[str]] = []  # the control tokens at the end, the last one first
        at = len(text)
        for match in reversed(list(self._template.control.finditer(text))):
            if text[match.end() : at].strip():
                break
            closing.append(match)
            at = match.start()
        ends = [match for match in closing if match[0] == self._probe.turn_end]
        return next((match.end() for match in ends + closing), len(text))


def no_answer(number: int, message: Message, prompt: str) -> UserError:
    """What to say where the answer in a message is not found behind its prompt."""
    if thoughts_of(message) and prompt.rstrip().endswith("</think>"):
        return UserError(
            f"message {number} has thoughts, and the chat template's generation prompt closes "
            f"them before the answer: "
            "take them out, or turn them on with the template's switch in 'chat_template_kwargs'"
        )
    return UserError(
        f"the chat template does not render the answer in message {number} behind its own "
        f"generation prompt, so what "
        "is learnt would not be what is asked for; put {% generation %} ... {% endgeneration %} "
        "around the "
        "assistant's words in the template"
    )
