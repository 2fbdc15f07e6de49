"""Weights inside an answer: text parts with ``train`` or ``weight``, and thoughts."""

from __future__ import annotations

import re

from lit_llm.data.chat.messages import PartWeights, text_of, thoughts_of
from lit_llm.data.chat.template import CUT, Message
from lit_llm.errors import UserError

Span = tuple[int, int]
# Tags around thoughts, with the white space that belongs to them.
_OPENS = re.compile(r"<think\w*>\s*\Z")
_CLOSES = re.compile(r"\s*</think\w*>\s*")


def weighted_spans(
    text: str, spans: list[Span], message: Message, given: PartWeights
) -> list[tuple[int, int, float]]:
    """Characters of an answer that have a weight of their own; 0 is not learnt.

    Thoughts are left out together with their tags: the model that the data come from writes them,
    and a half of a block would be a text of its own. White space around a text part belongs to no
    part, because tokens often join it with the word of the next part.

    Args:
        text: the rendered conversation.
        spans: characters of the answer in ``text``, ascending.
        message: the answer.
        given: the weights of its parts.

    Returns:
        Spans (first, end, weight) of ``text``. A token has the smallest of the weights of its
        characters, so what is not learnt is never learnt with its neighbour.

    Raises:
        UserError: the template renders the answer's text or thoughts with other words, so the parts
            cannot be found.
    """
    if not spans or not (given.parts or not given.reasoning):
        return []
    begin, end = spans[0][0], spans[-1][1]
    # Places of the characters that the message itself has: the marks inside control tokens are not.
    places = [at for at in range(begin, end) if text[at] != CUT]
    answer = "".join(text[at] for at in places)
    places.append(end)
    found: list[tuple[int, int, float]] = []
    thoughts = thoughts_of(message).strip()
    first = answer.find(thoughts) if thoughts else 0
    if thoughts and first < 0:
        _refuse("thoughts", given)
    last = first + len(thoughts)
    if thoughts and not given.reasoning:
        opened, closed = _OPENS.search(answer[:first]), _CLOSES.match(answer, last)
        found.append((opened.start() if opened else first, closed.end() if closed else last, 0.0))
    content = text_of(message)
    if given.parts:
        words = content.strip()
        # Words of the thoughts may be repeated in the answer, so it is searched behind them.
        at = answer.find(words, 0 if content.lstrip().startswith("<think>") else last)
        if at < 0:
            _refuse("text", given)
        moved = at - content.index(words)
        for a, b, weight in given.parts:
            part = content[a:b]
            a, b = a + len(part) - len(part.lstrip()), b - len(part) + len(part.rstrip())
            if a < b:
                found.append((max(0, a + moved), min(len(answer), b + moved), weight))
    return [(places[a], places[b], weight) for a, b, weight in found]


def _refuse(what: str, given: PartWeights) -> None:
    raise UserError(
        f"the chat template changes the {what} of an answer, so the parts of it that have their "
        f"own weight ({'text parts' if given.parts else 'thoughts'}) cannot be found in it; mark "
        "the whole message instead"
    )
