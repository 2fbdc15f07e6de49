"""What becomes of a conversation that has more tokens than a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lit_llm.data.chat.chat_format import ChatFormat, EncodedConversation
from lit_llm.data.chat.template import Message
from lit_llm.data.rows.policy import TooLong
from lit_llm.data.trees import TokenPath
from lit_llm.errors import UserError


class Fitted(NamedTuple):
    """An example that fits.

    Attributes:
        row: the encoded example; None if it is dropped.
        turns: number of answers that were left off at its end.
        cut: whether its text was cut.
    """

    row: EncodedConversation | None
    turns: int = 0
    cut: bool = False


def fit(
    row: EncodedConversation,
    size: int,
    too_long: TooLong,
    chat: ChatFormat,
    messages: list[Message] | None,
    arguments: dict[str, Any],
    weight: float = 1.0,
) -> Fitted:
    """Make an example fit into ``size`` tokens.

    Args:
        row: the encoded example.
        size: most tokens.
        too_long: "turns" leaves off whole turns at the end, so that the last answer in the row is
            whole and the model learns to end it; an example whose first answer does not fit is
            dropped. "drop" drops examples, "cut" cuts their text, "raise" refuses them.
        chat: encodes a shorter conversation.
        messages: the conversation; None if the example has no turns.
        arguments: further arguments of the template.
        weight: weight of the row, which ``row`` has already.

    Raises:
        UserError: "raise" and the example is too long; "cut" and nothing is left to learn.
    """
    needed = max(_needed(path) for path in row.paths)
    if needed <= size:  # what follows the last learnt token changes nothing
        return Fitted(_first(row, size))
    if too_long == "raise":
        raise UserError(
            f"the example has {needed} tokens, data.seq_len={size - 1} allows {size}; raise it, or "
            "let data.too_long be turns, drop or cut"
        )
    if too_long == "cut":
        shorter = _first(row, size)
        if not shorter.paths:
            prompt = min(int(path.learnt.argmax()) for path in row.paths if path.learnt.any())
            raise UserError(
                f"the prompt alone takes {prompt} tokens and data.seq_len={size - 1}: nothing is "
                "left to learn"
            )
        return Fitted(shorter, cut=True)
    if too_long == "turns" and messages is not None:
        targets = chat.targets(messages, arguments)
        fitting = [one for one in targets if len(one.context) + len(one.answer) <= size]
        if fitting:
            # The first path begins with the context and answer of its last target, so they are
            # whole. An earlier answer in a path of its own may still be too long.
            last = fitting[-1].turn
            shorter = chat.encode_conversation(messages[: last + 1], arguments)
            whole = [path.times(weight) for path in shorter.paths if _needed(path) <= size]
            return Fitted(
                _first(shorter._replace(paths=whole), size), turns=len(targets) - len(fitting)
            )
    return Fitted(None)


def _needed(path: TokenPath) -> int:
    """Number of tokens up to the last learnt one."""
    return int(np.flatnonzero(path.learnt).max(initial=0)) + 1


def _first(row: EncodedConversation, size: int) -> EncodedConversation:
    """The first ``size`` tokens of each path; a path that then learns nothing is not needed."""
    paths = [path.cut(size) for path in row.paths]
    return row._replace(paths=[path for path in paths if path.learnt[1:].any()])
