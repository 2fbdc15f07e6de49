"""AnswerFinder: locates the assistant's last message in a rendered conversation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from lit_llm.data.chat.messages import REASONING, thoughts_of
from lit_llm.data.chat.template import ChatTemplate, Message, unmarked
from lit_llm.data.chat.template_probe import PROBE, TemplateProbe
from lit_llm.errors import UserError

Span = tuple[int, int]
# Generation prompt that opens a block of thoughts. R1's ends with "<think>" and a newline.
_OPENED_THOUGHTS = re.compile(r"<(think\w*)>\s*\Z")
# Generation prompt that also closes the block, so that the answer has no thoughts: Qwen3's with
# enable_thinking off.
_CLOSED_THOUGHTS = re.compile(r"<(think\w*)>\s*</\1>\s*\Z")


class AnswerFinder:
    """Finds a rendered answer and places it after the prompt that a server would send for it.

    Args:
        template: renders the messages.
        probe: facts about this template.
    """

    def __init__(self, template: ChatTemplate, probe: TemplateProbe):
        self._template, self._probe = template, probe

    def find(
        self, messages: list[Message], arguments: Mapping[str, Any], prompt: str
    ) -> tuple[str, list[Span]]:
        """Render the conversation, and find the characters of the last answer.

        Where possible, the text begins with ``prompt``, and the answer follows it. If the template
        has ``{% generation %}`` marks, they determine the answer's characters. If the answer cannot
        be found in either way, there are no characters.

        Args:
            messages: the conversation, which ends with an answer.
            arguments: further arguments of the template.
            prompt: the messages before the answer, rendered with the generation prompt.

        Returns:
            The text, and the spans of characters that the assistant writes.

        Raises:
            UserError: the template refuses the messages.
        """
        text, marked = unmarked(self._template.render(messages, False, arguments))
        begin = len(prompt)
        if not text.startswith(prompt):
            found = self._find_answer(prompt, text, messages, arguments)
            # The characters of the text from ``at`` on follow the prompt and ``added``.
            if found is not None:
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
        end = begin + self._answer_length(text[begin:])
        if self._template.marks_answers:
            return text, [(max(a, begin), min(b, end)) for a, b in marked if begin < b and a < end]
        if end == len(text):
            text += self._probe.next_turn("tool_calls" in messages[-1]) or ""
            end = len(text)
        return text, [(begin, end)]

    def _find_answer(
        self, prompt: str, text: str, messages: list[Message], arguments: Mapping[str, Any]
    ) -> tuple[int, str] | None:
        """Locate the last answer in a text that does not begin with the prompt.

        There are three cases:

        - The prompt opens a block of thoughts that the template does not render (R1). The thoughts
          are added and the block is closed.
        - The prompt states that there are no thoughts, while the template renders an answer without
          thoughts as the answer alone.
        - The template renders earlier turns differently once this answer follows (gpt-oss drops
          thoughts between tool calls). The answer then follows the last generation prompt before
          its words.

        Returns:
            (start of the answer in ``text``, text to insert before it), or None.
        """
        opened = _OPENED_THOUGHTS.search(prompt)
        if opened and text.startswith(prompt[: opened.start()]):
            tag, rest = opened[1], text[opened.start() :]
            if rest.startswith(f"<{tag}>"):  # the thoughts are rendered, with different white space
                return len(text) - len(rest.removeprefix(f"<{tag}>").lstrip()), ""
            thoughts = self._template.defused(thoughts_of(messages[-1]))
            return len(text) - len(rest.lstrip("\n")), f"{thoughts}\n</{tag}>\n\n"
        none = _CLOSED_THOUGHTS.search(prompt)
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
        # Both renderings are equal up to the first words of the answer.
        common = len(os.path.commonprefix([text, other]))  # noqa: RUF071 -- no paths
        at = text.rfind(header, 0, common)
        return None if at < 0 else (at + len(header), "")

    def _answer_length(self, text: str) -> int:
        """Length of ``text`` up to and including the token that ends the turn.

        The rest is layout.
        """
        closing = self._template.closing_run(text)
        ends = [match for match in closing if match[0] == self._probe.turn_end]
        return next((match.end() for match in ends + closing), len(text))


def no_answer(number: int, message: Message, prompt: str) -> UserError:
    """The error for an answer that is not found after its prompt."""
    if thoughts_of(message) and prompt.rstrip().endswith("</think>"):
        return UserError(
            f"message {number} has thoughts, and the chat template's generation prompt closes "
            "them before the answer: take them out, or turn them on with the template's switch in "
            "'chat_template_kwargs'"
        )
    return UserError(
        f"the chat template does not render the answer in message {number} behind its own "
        "generation prompt, so what is learnt would not be what is asked for; put "
        "{% generation %} ... {% endgeneration %} around the assistant's words in the template"
    )
