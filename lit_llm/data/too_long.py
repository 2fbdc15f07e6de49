"""What becomes of a conversation that has more tokens than a row."""

from __future__ import annotations

from typing import Any, NamedTuple

from lit_llm.data.chat import ChatFormat, EncodedRow
from lit_llm.data.policy import TooLong
from lit_llm.data.template import Message
from lit_llm.errors import UserError


class Fitted(NamedTuple):
    """An example that fits.

    Attributes:
        row: the encoded example; None if it is dropped.
        turns: number of answers that were left off at its end.
        cut: whether its text was cut.
    """

    row: EncodedRow | None
    turns: int = 0
    cut: bool = False


def fit(
    row: EncodedRow,
    size: int,
    too_long: TooLong,
    chat: ChatFormat,
    messages: list[Message] | None,
    arguments: dict[str, Any],
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

    Raises:
        UserError: "raise" and the example is too long; "cut" and nothing is left to learn.
    """
    learnt = max((at for at, learn in enumerate(row.assistant_mask) if learn), default=0) + 1
    if learnt <= size:  # what follows the last learnt token changes nothing
        return Fitted(_first(row, size))
    if too_long == "raise":
        raise UserError(
            f"the example has {learnt} tokens, data.seq_len={size - 1} allows {size}; raise it, or "
            "let data.too_long be turns, drop or cut"
        )
    if too_long == "cut":
        shorter = _first(row, size)
        if not any(shorter.assistant_mask[1:]):
            raise UserError(
                f"the prompt alone takes {row.assistant_mask.index(True)} tokens and "
                f"data.seq_len={size - 1}: nothing is left to learn"
            )
        return Fitted(shorter, cut=True)
    if too_long == "turns" and messages is not None:
        targets = chat.targets(messages, arguments)
        fitting = [one for one in targets if len(one.context) + len(one.answer) <= size]
        if fitting:
            # The row begins with the context and answer of its last target, so they are whole.
            last = fitting[-1].turn
            shorter = _first(chat.encode_row(messages[: last + 1], arguments), size)
            return Fitted(shorter, turns=sum(one.turn > last for one in targets))
    return Fitted(None)


def _first(row: EncodedRow, size: int) -> EncodedRow:
    """The first ``size`` tokens of a row."""
    return row._replace(ids=row.ids[:size], assistant_mask=row.assistant_mask[:size])
