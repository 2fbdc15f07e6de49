"""Rows that are learnt without a chat template: ``segments`` and ``text``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_llm.data.chat.chat_format import ChatFormat, EncodedConversation
from lit_llm.data.chat.messages import check_characters
from lit_llm.data.rows.policy import Format
from lit_llm.data.rows.shapes import check_learnt
from lit_llm.data.trees import TokenPath
from lit_llm.errors import UserError

_BESIDE = ("system", "tools", "functions", "history", "messages", "conversations", "images",
           "chat_template_kwargs", "prompt", "completion")  # fmt: skip
# Columns beside "text" that say nothing of a conversation.
_FACTS = ("text", "id", "source", "split", "group", "weight", "url", "license", "language",
          "domain", "title", "score", "meta", "metadata", "timestamp", "date")  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """Text in pieces, of which some are learnt.

    Attributes:
        pieces: (text, whether it is learnt), in their order.
        written_out: the text writes its own control tokens, as a rendered template does.
    """

    pieces: tuple[tuple[str, bool], ...]
    written_out: bool

    @property
    def prompt(self) -> str:
        """The text before the last learnt piece; of a single piece, that piece."""
        last = max((n for n, (_, learn) in enumerate(self.pieces) if learn), default=0)
        return "".join(text for text, _ in self.pieces[: max(1, last)])


def segments_of(row: dict[str, Any], format: Format) -> Segments | None:
    """The pieces of a row without a template; None for a conversation.

    - {"segments": [{"text", "train"}]}: ``train`` (or ``label``, axolotl's name) is true if it is
      left out
    - {"text"}, learnt whole. Without ``data.format`` the row must hold nothing else but facts such
      as id, url or license: beside other columns, "text" may be a copy of a conversation.

    Raises:
        UserError: a value of another type, or a part of a conversation beside it.
    """
    row = {key: value for key, value in row.items() if value is not None and value != ""}
    alone = set(row) <= set(_FACTS)
    if format == "segments" or (
        format == "auto" and "segments" in row and not {"messages", "conversations"} & set(row)
    ):
        return _read(row, "segments")
    if format == "text" or (format == "auto" and "text" in row and alone):
        return _read(row, "text")
    return None


def _read(row: dict[str, Any], key: str) -> Segments:
    if key not in row:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(f"data.format={key}: the row has no {key!r}, its keys are {keys}")
    check_learnt(row)
    beside = [name for name in _BESIDE if row.get(name)]
    if beside:
        raise UserError(
            f"the row has {beside[0]!r} beside {key!r}, which no chat template renders; take one "
            "of the columns out"
        )
    given = row[key]
    check_characters(given, repr(key))
    if key == "text":
        if not isinstance(given, str):
            raise UserError(f"'text' must be a text, not {type(given).__name__}")
        return Segments(((given, True),), written_out=False)
    if not isinstance(given, list) or not given:
        raise UserError("'segments' must be a list of {text, train} and not empty")
    return Segments(tuple(_piece(n, piece) for n, piece in enumerate(given, 1)), written_out=True)


def _piece(number: int, piece: Any) -> tuple[str, bool]:
    if not isinstance(piece, dict) or not isinstance(piece.get("text"), str):
        raise UserError(f"segment {number} must be an object with a text as 'text'")
    other = [key for key in piece if key not in ("text", "train", "label")]
    if other:
        raise UserError(f"segment {number} has the key {other[0]!r}, which is not used")
    marks = {piece[key] for key in ("train", "label") if piece.get(key) is not None}
    if len(marks) > 1 or not marks <= {0, 1}:
        raise UserError(f"segment {number}: 'train' is true or false")
    return piece["text"], bool(marks.pop()) if marks else True


def encode_segments(segments: Segments, chat: ChatFormat) -> EncodedConversation:
    """Token ids and mask: the ids that the tokenizer puts before a text, the text, its end.

    The end is the end-of-text token, and learnt if the last piece is. Pieces that end with a token
    that ends a text get no second one. The text is encoded as a whole. A token that reaches over
    two pieces is learnt if only white space of it is not. A control token that is spelled in
    ``segments`` is that token; in "text" it stays text.

    Raises:
        UserError: the tokenizer has no token that ends a text.
    """
    tokenizer = chat.tokenizer
    text = "".join(piece for piece, _ in segments.pieces)
    learns = [learn for piece, learn in segments.pieces for _ in piece]
    if segments.written_out:
        ids, offsets = chat.encoder.encode(text)
        mask = [
            any(learns[a:b]) and all(learns[at] or text[at].isspace() for at in range(a, b))
            for a, b in offsets
        ]
    else:
        ids = tokenizer.encode(text)
        mask = [True] * len(ids)
    start = tokenizer.document_start
    if ids[: len(start)] != start:
        ids, mask = start + ids, [False] * len(start) + mask
    if not ids or ids[-1] not in chat.stop_ids:
        end = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(chat.stop_ids), None)
        if end is None:
            raise UserError("the tokenizer has no token that ends a text")
        ids, mask = [*ids, end], [*mask, bool(learns and learns[-1])]
    path = TokenPath(np.array(ids, np.int32), np.array(mask, bool))
    return EncodedConversation([path], 1, 0)
