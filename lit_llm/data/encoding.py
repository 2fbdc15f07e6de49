"""Rows of many formats from files, encoded to conversations of token ids and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_llm.data.blocks import IGNORE
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.learnt import check_answers, prepare, why_nothing
from lit_llm.data.chat.messages import text_of
from lit_llm.data.chat.template import Message
from lit_llm.data.conversations import write_conversations
from lit_llm.data.rows.contamination import contaminated, evaluation_items
from lit_llm.data.rows.mixing import contributions, repeated, spread
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.data.rows.row_files import GENERAL, Sources, file_key, files_of, read_rows, weights_of
from lit_llm.data.rows.segments import Segments, encode_segments
from lit_llm.data.rows.shapes import group_of, split_of, weight_of
from lit_llm.data.rows.splits import held_out
from lit_llm.data.rows.too_long import fit
from lit_llm.data.trees import TokenPath, Tree, trees_of
from lit_llm.errors import UserError
from lit_llm.io.atomic import sync, workspace_beside

_LONGEST_QUESTION = 500  # characters of a text without turns that the manifest holds
_FORMAT = 7  # version of the cached files; raise it when their format or encoding changes


@dataclass(frozen=True)
class RowFormat:
    """Conversion of a row to a conversation; see the methods of `InstructionDataModule`."""

    format_example: Callable[[dict[str, Any]], list[Message] | Segments]
    template_arguments: Callable[[dict[str, Any]], dict[str, Any]]
    version: str


def encoded_conversations(
    cache_dir: Path,
    *,
    train: Sources,
    validation: Sources | None,
    validation_fraction: float,
    row_format: RowFormat,
    chat: ChatFormat,
    seq_len: int,
    bad_rows: Literal["raise", "skip"],
    rehearsal: float = 0.0,
    policy: RowPolicy,
    share_prefixes: bool = True,
) -> tuple[Path, bool]:
    """Encode the conversations of these sources, or find them in the cache.

    The folder holds, for each split, the arrays of `Conversations`; manifest.jsonl with a line per
    example; and datacard.json. An answer with its context has at most seq_len + 1 tokens
    (``policy.too_long``).

    A row's ``split`` decides its split (`split_of`). If ``validation`` is given, rows that belong
    to the other split are left out of each source and counted. Of the rows without a split, whole
    groups and clusters of near-duplicates are held out (`held_out`), unless ``validation`` is
    given. The weights of ``train`` and ``policy.mixing`` then decide how often an example stands in
    an epoch; examples for validation stand there once.

    Args:
        cache_dir: parent of the cached folder.
        train: sources of training rows.
        validation: sources of validation rows, or None.
        validation_fraction: share of questions for validation.
        row_format: conversion of rows to conversations.
        chat: encodes the conversations.
        seq_len: tokens per example.
        bad_rows: "raise" reports the first bad row, "skip" leaves out and counts bad rows.
        share_prefixes: store what the answers of a conversation have in common once.
        rehearsal: share of the examples that are questions of "general", added to those of
            ``train``.
        policy: what is learnt of a row, and how sources are mixed.

    Returns:
        The folder, and whether it was in the cache.

    Raises:
        UserError: a bad row, with file and line (unless ``bad_rows`` is "skip"); a split without
            examples.
    """
    settings = {"format": _FORMAT, "train": train, "validation": validation,
                "fraction": validation_fraction, "formatted by": row_format.version,
                "rendered by": chat.rendered_by, "tokenizer": chat.tokenizer.fingerprint(),
                "seq_len": seq_len, "bad_rows": bad_rows, "policy": policy.key()}  # fmt: skip
    if rehearsal:
        settings["rehearsal"] = rehearsal
    if not share_prefixes:
        settings["share_prefixes"] = False
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in [
        *_files_once("data.sources", train),
        *_files_once("data.validation", validation or []),
    ]:
        digest.update(json.dumps(file_key(path)).encode())
    items = evaluation_items(policy.decontaminate)
    digest.update(json.dumps(items).encode())
    output = cache_dir / "instructions" / digest.hexdigest()[:16]
    if (output / "datacard.json").is_file():
        return output, True
    output.parent.mkdir(parents=True, exist_ok=True)
    with workspace_beside(output) as workspace:
        if (output / "datacard.json").is_file():
            return output, True
        encoded = _Encoded(row_format, chat, seq_len, bad_rows, policy, share_prefixes)
        encoded.add(train, "train", whole=validation is None)
        encoded.check_columns()
        encoded.decontaminate(items)
        encoded.choose_validation(validation_fraction)
        encoded.mix(train)
        if rehearsal:
            encoded.rehearse(rehearsal)
        if validation:
            encoded.add(validation, "validation", whole=False)
        card = encoded.write(workspace, train, validation)
        (workspace / "datacard.json").write_text(
            json.dumps(card | encoded.facts() | {"settings": settings}, indent=2), encoding="utf-8"
        )
        sync(workspace)
        os.rename(workspace, output)
    return output, False


def _files_once(key: str, sources: Sources) -> list[Path]:
    """The files of all patterns.

    Raises:
        UserError: a file belongs to two patterns; its examples would stand there twice.
    """
    found: dict[Path, str] = {}
    files: list[Path] = []
    for pattern in weights_of(sources):
        for path in files_of(pattern):
            files.append(path)
            if (other := found.setdefault(path.resolve(), pattern)) != pattern:
                raise UserError(
                    f"{key}: {path} belongs to {other} and to {pattern}; name it once (a weight "
                    "says how often its examples stand in an epoch)"
                )
    return files


@dataclass
class _Example:
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


class _Encoded:
    """Encoded examples, and counts of the rows that were left out."""

    def __init__(
        self,
        row_format: RowFormat,
        chat: ChatFormat,
        seq_len: int,
        bad_rows: str,
        policy: RowPolicy,
        share_prefixes: bool,
    ):
        self._format, self._chat, self._seq_len = row_format, chat, seq_len
        self._bad_rows, self._policy = bad_rows, policy
        self._share_prefixes = share_prefixes
        self._examples: list[_Example] = []
        self._dropped: Counter[str] = Counter()
        self._other_split: Counter[str] = Counter()
        self._own_split: Counter[str] = Counter()  # of rows that name it themselves
        self._too_long: Counter[str] = Counter()
        self._contaminated: Counter[str] = Counter()
        self._weightless = 0
        self._columns: set[str] = set()  # names of `RowPolicy.columns` that some row has
        self._by_source: dict[str, dict[str, int]] = {}

    def add(self, sources: Sources, split: str, whole: bool) -> None:
        """Encode the rows of ``sources``, each once.

        Rows of another split than ``split`` are left out, unless ``whole`` is set.
        """
        for pattern in weights_of(sources):
            for place, row in read_rows(pattern):
                try:
                    if isinstance(row, UserError):
                        raise row
                    row = self._policy.renamed(row, self._columns)
                    own = split_of(row)
                    if not whole and own not in (None, split):
                        self._other_split[str(own)] += 1
                        continue
                    example = self._encode(row, place, own if whole else split, pattern)
                    self._examples += [] if example is None else [example]
                    self._own_split.update([own] if example is not None and own else [])
                except Exception as error:
                    # Rows come from users: any exception is reported with the row's place.
                    known = isinstance(error, UserError)
                    reason = str(error) if known else f"{type(error).__name__}: {error}"
                    if self._bad_rows == "raise":
                        raise UserError(f"{place}: {reason}") from (None if known else error)
                    self._dropped[reason] += 1

    def check_columns(self) -> None:
        """Raise UserError for a name in ``data.columns`` that no row has."""
        for ours, theirs in self._policy.columns.items():
            if theirs not in self._columns:
                raise UserError(f"data.columns.{ours}: no row of data.sources has {theirs!r}")

    def rehearse(self, share: float) -> None:
        """Add general questions until they are ``share`` of all examples.

        The numbers of repetitions of two questions differ by one at most.
        """
        usable = []
        for place, row in read_rows(GENERAL):
            assert not isinstance(row, UserError)  # a file of the package has no bad rows
            example = self._encode(row, place, "train", GENERAL)
            usable += [] if example is None else [example]
        if not usable:
            raise UserError(
                f"data.rehearsal: no general question fits data.seq_len={self._seq_len}; raise it, "
                "or set data.rehearsal=0"
            )
        wanted = round(share / (1 - share) * len(self._examples))
        self._examples += repeated(usable, [False] * len(usable), wanted)

    def _encode(
        self, row: dict[str, Any], place: str, split: str | None, source: str
    ) -> _Example | None:
        """Encode a row; None if it is longer than a row and dropped."""
        weight = weight_of(row)
        if weight == 0:
            self._weightless += 1
            return None
        made = self._format.format_example(row)
        messages: list[Message] | None = None
        arguments: dict[str, Any] = {}
        said: Any  # what is learnt, for the digest in the manifest
        if isinstance(made, Segments):
            coded, prompt = encode_segments(made, self._chat), made.prompt
            question, said = prompt[:_LONGEST_QUESTION], list(made.pieces)
        else:
            arguments = self._format.template_arguments(row)
            messages = prepare(made, self._policy, self._chat.knows_reasoning(arguments))
            coded = self._chat.encode_conversation(messages, arguments)
            check_answers(messages)
            asked = [text_of(message) for message in messages if message["role"] == "user"]
            question, prompt, said = (asked or [""])[0], _prompt_of(messages), messages
        coded = coded._replace(paths=[path.times(weight) for path in coded.paths])
        if not any(path.learnt[1:].any() for path in coded.paths):
            raise UserError(f"no supervised token: {why_nothing(messages)}")
        size, policy = self._seq_len + 1, self._policy.too_long
        fitted = fit(coded, size, policy, self._chat, messages, arguments, weight)
        self._too_long.update(
            cut=fitted.cut, shortened=fitted.turns > 0, turns_left_off=fitted.turns
        )
        if fitted.row is None:
            self._too_long["dropped"] += 1
            return None
        sha = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
        first = int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big")
        return _Example(
            paths=fitted.row.paths,
            trees=self._trees(fitted.row.paths),
            split=split,
            position=first / 2**48,
            truncated=fitted.cut,
            answers=fitted.row.answers,
            left_out=fitted.row.left_out,
            line={"id": row.get("id", place), "sha256": sha, "question": question}
            | ({"tools": tools} if (tools := _tool_names(arguments)) else {}),
            source=source,
            group=group_of(row),
            prompt=prompt,
        )

    def decontaminate(self, items: Mapping[str, list[str]]) -> None:
        """Leave out training examples that share words with evaluation items, and count them."""
        tested = [example for example in self._examples if example.split != "validation"]
        if not items:
            return
        decode = self._chat.tokenizer.decode
        words = ["\n".join(decode(path.ids, True) for path in e.paths) for e in tested]
        found = contaminated(words, items)
        gone = {id(e): name for e, name in zip(tested, found, strict=True) if name is not None}
        self._contaminated.update(gone.values())
        self._examples = [example for example in self._examples if id(example) not in gone]

    def _trees(self, paths: list[TokenPath]) -> list[Tree]:
        if self._share_prefixes:
            return trees_of(paths, self._seq_len)
        return [tree for path in paths for tree in trees_of([path], self._seq_len)]

    def choose_validation(self, fraction: float) -> None:
        """Assign a split to the examples that have none."""
        open_ones = [example for example in self._examples if example.split is None]
        if len(open_ones) < len(self._examples) and any(
            example.split == "validation" for example in self._examples
        ):
            for example in open_ones:
                example.split = "train"
            return
        chosen = held_out(
            [example.group for example in open_ones],
            [example.prompt for example in open_ones],
            [example.position for example in open_ones],
            fraction,
        )
        for example, held in zip(open_ones, chosen, strict=True):
            example.split = "validation" if held else "train"

    def mix(self, sources: Sources) -> None:
        """Repeat the training examples of each source as often as the mixture asks for."""
        weights, caps = weights_of(sources), self._policy.source_caps
        own: dict[str, list[_Example]] = {pattern: [] for pattern in weights}
        for example in self._examples:
            own[example.source].append(example)
        for pattern, examples in own.items():
            cap = caps.get(pattern) if isinstance(caps, Mapping) else caps
            train = [example for example in examples if example.split == "train"]
            if cap is not None and cap < len(train):
                kept = {id(example) for example in spread(train, cap)}
                own[pattern] = [e for e in examples if e.split != "train" or id(e) in kept]
        free = {p: sum(e.split == "train" for e in examples) for p, examples in own.items()}
        wanted = contributions(free, weights, self._policy.mixing)
        self._by_source = {
            pattern: {"examples": free[pattern], "in_an_epoch": wanted[pattern]} for pattern in own
        }
        self._examples = [
            example
            for pattern, examples in own.items()
            for example in repeated(
                examples, [e.split != "train" for e in examples], wanted[pattern]
            )
        ]

    def facts(self) -> dict[str, Any]:
        """Further counts for the data card."""
        counted = ("shortened", "turns_left_off", "dropped", "cut")
        return {
            "too_long": {key: self._too_long[key] for key in counted},
            "contaminated": dict(self._contaminated),
            "rows_of_weight_0": self._weightless,
            "sources": self._by_source,
        }

    def write(self, folder: Path, train: Sources, validation: Sources | None) -> dict[str, Any]:
        """Write arrays and manifest; returns the data card."""
        counts = {split: Counter[str]() for split in ("train", "validation")}
        trained = {e.line["sha256"] for e in self._examples if e.split == "train"}
        content = hashlib.sha256()
        with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
            for example in self._examples:
                split = str(example.split)
                for path in example.paths:
                    content.update(path.ids.tobytes())
                    content.update(path.learnt.tobytes())
                    content.update(b"" if path.weights is None else path.weights.tobytes())
                content.update(split.encode())
                tokens = sum(len(tree) + 1 for tree in example.trees)
                counts[split].update(
                    examples=1,
                    trees=len(example.trees),
                    tokens=tokens,
                    tokens_apart=sum(len(path.ids) for path in example.paths),
                    supervised_tokens=sum(
                        int((tree.labels != IGNORE).sum()) for tree in example.trees
                    ),
                    truncated=example.truncated,
                    answers=example.answers,
                    answers_left_out=example.left_out,
                    weighted=any(tree.weights is not None for tree in example.trees),
                    trained_on=split == "validation" and example.line["sha256"] in trained,
                )
                line = {**example.line, "split": split, "tokens": tokens}
                line["trees"] = len(example.trees)
                manifest.write(json.dumps(line, default=str) + "\n")
        for split in counts:
            own = [example for example in self._examples if example.split == split]
            if not own:
                raise UserError(
                    self._empty_split_message(split, validation if split == "validation" else train)
                )
            trees = [tree for example in own for tree in example.trees]
            write_conversations(folder, split, trees)
        return {
            "kind": "instructions",
            "content": content.hexdigest(),
            "splits": {split: dict(count) for split, count in counts.items()},
            "dropped": dict(self._dropped),
            "rows_of_the_other_split": self._other_split.total(),
        }

    def _empty_split_message(self, split: str, sources: Sources | None) -> str:
        """Explain why a split is empty, and what to do."""
        key = "data.validation" if split == "validation" and sources else "data.sources"
        named = f" in {sources!r}" if sources else ""
        words = [f"{key}: no example for {split}{named}; {len(self._examples)} rows can be used"]
        if self._dropped:
            reason, count = self._dropped.most_common(1)[0]
            words.append(f"{self._dropped.total()} are bad, {count} of them because: {reason}")
        if self._too_long["dropped"]:
            words.append(
                f"{self._too_long['dropped']} are longer than data.seq_len={self._seq_len} allows; "
                "raise it, or take data.too_long=cut"
            )
        if self._weightless:
            words.append(f"{self._weightless} have the weight 0")
        if self._contaminated:
            words.append(f"{self._contaminated.total()} share words with evaluation items")
        if self._other_split:
            words.append(f"{self._other_split.total()} belong to the other split")
        others = sum(count for own, count in self._own_split.items() if own != split)
        if others and others == len(self._examples):
            more = ", or data.validation" if split == "validation" else ""
            words.append(
                f"the column 'split' of all of them names the other one; give rows with {split} "
                f"there{more}"
            )
        elif self._examples:
            words.append(
                "give rows with at least two different questions (near-duplicates and rows of one "
                'group count as one), rows with "split", or data.validation'
            )
        return "; ".join(words)


def _tool_names(arguments: dict[str, Any]) -> list[str]:
    return [tool.get("function", tool)["name"] for tool in arguments.get("tools", [])]


def _prompt_of(messages: list[Message]) -> str:
    """What is asked: the messages before the last answer, without the system's.

    Rows often share a long system message, which would make all of them near-duplicates.
    """
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    before = messages[: answers[-1]] if answers else messages
    return "\n".join(
        text_of(message) for message in before if message["role"] not in ("system", "developer")
    )
