"""Examples: what one row becomes, and the encoder that makes them of conversations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.learnt import check_answers, prepare, why_nothing
from lit_llm.data.chat.messages import text_of
from lit_llm.data.chat.template import Message
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.data.rows.segments import Segments, encode_segments
from lit_llm.data.rows.shapes import group_of, weight_of
from lit_llm.data.rows.too_long import fit
from lit_llm.data.trees import TokenPath, Tree, trees_of
from lit_llm.errors import UserError

_FORMAT = 7  # version of the encoding; raise it when it changes
_LONGEST_QUESTION = 500  # characters of a text without turns that the manifest holds


@dataclass(frozen=True)
class RowFormat:
    """Conversion of a row to what is encoded; see the methods of `InstructionDataModule`."""

    format_example: Callable[[dict[str, Any]], Any]
    template_arguments: Callable[[dict[str, Any]], dict[str, Any]]
    version: str


@dataclass
class Example:
    """An encoded row, or one of several that a row becomes."""

    paths: list[TokenPath]
    trees: list[Tree]
    split: str | None  # None: decided by the hash of the question
    position: float  # hash of the question, scaled to [0, 1)
    truncated: bool
    answers: int
    left_out: int
    line: dict[str, Any]  # line of manifest.jsonl
    source: str  # its pattern
    group: str | None  # rows of one group are in one split
    prompt: str  # what is asked; near-duplicates are in one split
    facts: dict[str, float] = field(default_factory=dict)  # numbers beside its tree


class Encoder(Protocol):
    """Makes examples of rows.

    Attributes:
        kind: name of the folder in the cache, and of the data card's kind.
        chat: the tokenizer with its chat template.
        seq_len: tokens per row.
        weightless: number of rows of weight 0, which are left out.
        too_long: numbers of examples that were longer than a row, by what became of them.
    """

    kind: str
    chat: ChatFormat
    seq_len: int
    weightless: int
    too_long: Counter[str]

    def key(self) -> dict[str, Any]:
        """All settings that decide what is made of a row."""
        ...

    def encode(
        self, row: dict[str, Any], place: str, split: str | None, source: str
    ) -> list[Example]:
        """The examples of a row; UserError for a row that cannot be used."""
        ...

    def facts(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Further facts for the data card, about the training examples."""
        ...


class ConversationEncoder:
    """Encodes conversations, and texts without a template, for supervised finetuning.

    Args:
        row_format: conversion of rows to conversations.
        chat: encodes the conversations.
        seq_len: tokens per row.
        policy: what is learnt of a row.
        share_prefixes: store what the answers of a conversation have in common once.
    """

    kind = "instructions"

    def __init__(
        self,
        row_format: RowFormat,
        chat: ChatFormat,
        seq_len: int,
        policy: RowPolicy,
        share_prefixes: bool = True,
    ):
        self._format, self.chat, self.seq_len = row_format, chat, seq_len
        self._policy, self._share_prefixes = policy, share_prefixes
        self.weightless = 0
        self.too_long: Counter[str] = Counter()

    def key(self) -> dict[str, Any]:
        """All settings that decide what is made of a row."""
        apart = {} if self._share_prefixes else {"share_prefixes": False}
        return common_key(self._format, self.chat, self.seq_len, self._policy) | apart

    def facts(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Nothing beside what all data cards say."""
        return {}

    def encode(
        self, row: dict[str, Any], place: str, split: str | None, source: str
    ) -> list[Example]:
        """The example of a row; none if it is longer than a row and dropped."""
        weight = weight_of(row)
        if weight == 0:
            self.weightless += 1
            return []
        made = self._format.format_example(row)
        messages: list[Message] | None = None
        arguments: dict[str, Any] = {}
        said: Any  # what is learnt, for the digest in the manifest
        if isinstance(made, Segments):
            coded, prompt = encode_segments(made, self.chat), made.prompt
            question, said = prompt[:_LONGEST_QUESTION], list(made.pieces)
        else:
            arguments = self._format.template_arguments(row)
            messages = prepare(made, self._policy, self.chat.knows_reasoning(arguments))
            coded = self.chat.encode_conversation(messages, arguments)
            check_answers(messages)
            asked = [text_of(message) for message in messages if message["role"] == "user"]
            question, prompt, said = (asked or [""])[0], prompt_of(messages), messages
        coded = coded._replace(paths=[path.times(weight) for path in coded.paths])
        if not any(path.learnt[1:].any() for path in coded.paths):
            raise UserError(f"no supervised token: {why_nothing(messages)}")
        size, policy = self.seq_len + 1, self._policy.too_long
        fitted = fit(coded, size, policy, self.chat, messages, arguments, weight)
        self.too_long.update(
            cut=fitted.cut, shortened=fitted.turns > 0, turns_left_off=fitted.turns
        )
        if fitted.row is None:
            self.too_long["dropped"] += 1
            return []
        return [
            Example(
                paths=fitted.row.paths,
                trees=self._trees(fitted.row.paths),
                split=split,
                position=position_of(question),
                truncated=fitted.cut,
                answers=fitted.row.answers,
                left_out=fitted.row.left_out,
                line=manifest_line(row, place, said, question, arguments),
                source=source,
                group=group_of(row),
                prompt=prompt,
            )
        ]

    def _trees(self, paths: list[TokenPath]) -> list[Tree]:
        if self._share_prefixes:
            return trees_of(paths, self.seq_len)
        return [tree for path in paths for tree in trees_of([path], self.seq_len)]


def common_key(
    row_format: RowFormat, chat: ChatFormat, seq_len: int, policy: RowPolicy
) -> dict[str, Any]:
    """What decides the encoding of rows of every kind."""
    return {"format": _FORMAT, "formatted by": row_format.version, "rendered by": chat.rendered_by,
            "tokenizer": chat.tokenizer.fingerprint(), "seq_len": seq_len,
            "policy": policy.key()}  # fmt: skip


def position_of(question: str) -> float:
    """A hash of the question, scaled to [0, 1)."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big") / 2**48


def manifest_line(
    row: dict[str, Any], place: str, said: Any, question: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """The example's line of manifest.jsonl.

    Args:
        row: the row.
        place: its file and line.
        said: what is learnt, of which the line has a digest.
        question: what is asked.
        arguments: further arguments of the chat template.
    """
    sha = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
    tools = _tool_names(arguments)
    line = {"id": row.get("id", place), "sha256": sha, "question": question}
    return line | ({"tools": tools} if tools else {})


def _tool_names(arguments: dict[str, Any]) -> list[str]:
    return [tool.get("function", tool)["name"] for tool in arguments.get("tools", [])]


def prompt_of(messages: list[Message]) -> str:
    """What is asked: the messages before the last answer, without the system's.

    Rows often share a long system message, which would make all of them near-duplicates.
    """
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    before = messages[: answers[-1]] if answers else messages
    return "\n".join(
        text_of(message) for message in before if message["role"] not in ("system", "developer")
    )
