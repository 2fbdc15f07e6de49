"""Parts of an answer that are not learnt: text parts with ``train`` false, and thoughts."""

from __future__ import annotations

import re

from lit_llm.data.chat.messages import Hidden, text_of, thoughts_of
from lit_llm.data.chat.template import CUT, Message
from lit_llm.errors import UserError

Span = tuple[int, int]
# Tags around thoughts, with the white space that belongs to them.
_OPENS = re.compile(r"<think\w*>\s*\Z")
_CLOSES = re.compile(r"\s*</think\w*>\s*")


def hidden_spans(text: str, spans: list[Span], message: Message, hidden: Hidden) -> list[Span]:
    """Characters of an answer that are not learnt.

    Thoughts are left out together with their tags: the model that the data come from writes them,
    and a half of a block would be a text of its own. White space around a text part is left in,
    because tokens often join it with the word of the next part.

    Args:
        text: the rendered conversation.
        spans: characters of the answer in ``text``, ascending.
        message: the answer.
        hidden: what of it is not learnt.

    Returns:
        Spans (first, end) of ``text``. No token with a character in them is learnt.

    Raises:
        UserError: the template renders the answer's text or thoughts with other words, so the parts
            cannot be found.
    """
    if not spans or not (hidden.parts or hidden.reasoning):
        return []
    begin, end = spans[0][0], spans[-1][1]
    # Places of the characters that the message itself has: the marks inside control tokens are not.
    places = [at for at in range(begin, end) if text[at] != CUT]
    answer = "".join(text[at] for at in places)
    places.append(end)
    found: list[Span] = []
    thoughts = thoughts_of(message).strip()
    first = answer.find(thoughts) if thoughts else 0
    if thoughts and first < 0:
        _refuse("thoughts", hidden)
    last = first + len(thoughts)
    if thoughts and hidden.reasoning:
        opened, closed = _OPENS.search(answer[:first]), _CLOSES.match(answer, last)
        found.append((opened.start() if opened else first, closed.end() if closed else last))
    content = text_of(message)
    if hidden.parts:
        words = content.strip()
        # Words of the thoughts may be repeated in the answer, so it is searched behind them.
        at = answer.find(words, 0 if content.lstrip().startswith("<think>") else last)
        if at < 0:
            _refuse("text", hidden)
        moved = at - content.index(words)
        for a, b in hidden.parts:
            part = content[a:b]
            a, b = a + len(part) - len(part.lstrip()), b - len(part) + len(part.rstrip())
            found += [(max(0, a + moved), min(len(answer), b + moved))] if a < b else []
    return [(places[a], places[b]) for a, b in found]


def _refuse(what: str, hidden: Hidden) -> None:
    raise UserError(
        f"the chat template changes the {what} of an answer, so the parts of it that are not "
        f"learnt ({'text parts' if hidden.parts else 'thoughts'}) cannot be found in it; mark the "
        "whole message instead"
    )
