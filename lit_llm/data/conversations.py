"""Conversations from files: rows in many formats, encoded to token ids and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_llm.corpus.reading.rows import JSON_ENDINGS, json_lines, parquet_rows
from lit_llm.corpus.reading.sources import STDLIB, list_files
from lit_llm.data.blocks import IGNORE
from lit_llm.data.chat import ChatFormat
from lit_llm.data.docstrings import docstring_rows
from lit_llm.data.messages import text_of
from lit_llm.data.shapes import split_of
from lit_llm.data.template import Message
from lit_llm.data.trees import TREE_ARRAYS, TokenPath, Tree, trees_of
from lit_llm.errors import UserError
from lit_llm.io.atomic import sync, workspace_beside

Sources = str | list[str] | dict[str, int]
GENERAL = "general"
_GENERAL_FILE = Path(__file__).with_name("general.jsonl")
_FORMAT = 5  # version of the cached files; raise it when their format or encoding changes


@dataclass(frozen=True)
class Conversations:
    """Encoded examples of one split.

    An example is a conversation whose answers are learnt from one `Tree`, or from several if one
    would be too long.

    Attributes:
        input_ids, labels, until, position: arrays of all trees, concatenated; int32 (tokens,).
        offsets: int64 (trees + 1,), start of each tree, and the end.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    until: np.ndarray
    position: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Tree]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tree:
        """One tree."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Tree(self.input_ids[part], self.labels[part], self.until[part], self.position[part])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each tree, int64 (trees,)."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> np.ndarray:
        """Learnt labels of each tree, int64 (trees,)."""
        return np.add.reduceat(self.labels != IGNORE, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def branches(self) -> bool:
        """Whether any tree has branches. The tokens of a tree without them all see its end."""
        ends = np.repeat(self.lengths, self.lengths)
        return bool((self.until != ends).any())


def read_rows(sources: Sources) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Yield (place for error messages, row) for every row of the sources.

    A UserError takes the place of a row that cannot be parsed.

    Args:
        sources: JSONL or parquet files or globs; "stdlib": questions made of docstrings; "general":
            eighty simple questions of general knowledge for rehearsal. A mapping gives the number
            of repetitions of each.

    Raises:
        UserError: nothing matches, a file of another format, or a file that cannot be read
            completely.
    """
    for pattern, times in _repeats(sources).items():
        for _ in range(times):
            yield from _read_source(pattern)


def _repeats(sources: Sources) -> dict[str, int]:
    if isinstance(sources, dict):
        return sources
    return dict.fromkeys([sources] if isinstance(sources, str) else sources, 1)


def _files(pattern: str) -> list[Path]:
    return (
        [_GENERAL_FILE] if pattern == GENERAL else [Path(file.path) for file in list_files(pattern)]
    )


def _read_source(pattern: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    if pattern == STDLIB:
        yield from ((f"{STDLIB}:{row['id']}", row) for row in docstring_rows())
        return
    for path in _files(pattern):
        name = path.name.lower()
        if name.endswith(".parquet"):
            rows = parquet_rows(path)
        elif name.endswith(JSON_ENDINGS):
            rows = json_lines(path)
        else:
            raise UserError(
                f"{path}: instructions are read from .jsonl, .json, .jsonl.gz and .parquet files"
            )
        for number, row in rows:
            yield f"{path}:{number}", UserError(row) if isinstance(row, str) else row


@dataclass(frozen=True)
class RowFormat:
    """Conversion of a row to a conversation; see the methods of `InstructionDataModule`."""

    format_example: Callable[[dict[str, Any]], list[Message]]
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
    share_prefixes: bool = True,
) -> tuple[Path, bool]:
    """Encode the conversations of these sources, or find them in the cache.

    The folder holds, for each split, the arrays of `Conversations`; manifest.jsonl with a line per
    example; and datacard.json. An answer with its context is cut to seq_len + 1 tokens.

    A row's ``split`` decides its split (`split_of`). If ``validation`` is given, rows that belong
    to the other split are left out of each source and counted. Rows without a split go to
    validation by a hash of their first user message, unless ``validation`` is given. The same
    question is therefore never in both splits. If the share gives less than one question, the
    question with the lowest hash is taken.

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

    Returns:
        The folder, and whether it was in the cache.

    Raises:
        UserError: a bad row, with file and line (unless ``bad_rows`` is "skip"); a split without
            examples.
    """
    settings = {"format": _FORMAT, "train": train, "validation": validation,
                "fraction": validation_fraction, "formatted by": row_format.version,
                "rendered by": chat.rendered_by, "tokenizer": chat.tokenizer.fingerprint(),
                "seq_len": seq_len, "bad_rows": bad_rows}  # fmt: skip
    if rehearsal:  # added only if set, so that earlier cache keys stay valid
        settings["rehearsal"] = rehearsal
    if not share_prefixes:
        settings["share_prefixes"] = False
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for sources in (train, validation or []):
        for pattern in _repeats(sources):
            for path in _files(pattern):
                stat = path.stat()
                digest.update(json.dumps([path.name, stat.st_size, stat.st_mtime_ns]).encode())
    output = cache_dir / "instructions" / digest.hexdigest()[:16]
    if (output / "datacard.json").is_file():
        return output, True
    output.parent.mkdir(parents=True, exist_ok=True)
    with workspace_beside(output, progress=False) as workspace:
        if (output / "datacard.json").is_file():
            return output, True
        encoded = _Encoded(row_format, chat, seq_len, bad_rows, share_prefixes)
        encoded.add(train, "train", whole=validation is None)
        if rehearsal:
            encoded.rehearse(rehearsal)
        if validation:
            encoded.add(validation, "validation", whole=False)
        encoded.choose_validation(validation_fraction)
        card = encoded.write(workspace, train, validation)
        (workspace / "datacard.json").write_text(
            json.dumps(card | {"settings": settings}, indent=2), encoding="utf-8"
        )
        sync(workspace)
        os.rename(workspace, output)
    return output, False


def load_conversations(folder: Path, split: str) -> Conversations:
    """Load one split of an encoded folder, memory-mapped."""
    parts = [
        np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in (*TREE_ARRAYS, "offsets")
    ]
    return Conversations(*parts)


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


class _Encoded:
    """Encoded examples, and counts of the rows that were left out."""

    def __init__(
        self,
        row_format: RowFormat,
        chat: ChatFormat,
        seq_len: int,
        bad_rows: str,
        share_prefixes: bool,
    ):
        self._format, self._chat, self._seq_len = row_format, chat, seq_len
        self._bad_rows, self._share_prefixes = bad_rows, share_prefixes
        self._examples: list[_Example] = []
        self._dropped: Counter[str] = Counter()
        self._other_split: Counter[str] = Counter()

    def add(self, sources: Sources, split: str, whole: bool) -> None:
        """Encode the rows of ``sources``.

        Rows of another split than ``split`` are left out, unless ``whole`` is set.
        """
        for place, row in read_rows(sources):
            try:
                if isinstance(row, UserError):
                    raise row
                own = split_of(row)
                if not whole and own not in (None, split):
                    self._other_split[str(own)] += 1
                    continue
                self._examples.append(self._encode(row, place, own if whole else split))
            except Exception as error:
                # Rows come from users: any exception is reported with the row's place.
                known = isinstance(error, UserError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                if self._bad_rows == "raise":
                    raise UserError(f"{place}: {reason}") from (None if known else error)
                self._dropped[reason] += 1

    def rehearse(self, share: float) -> None:
        """Add general questions until they are ``share`` of all examples.

        The numbers of repetitions of two questions differ by one at most.
        """
        rows = list(_read_source(GENERAL))
        wanted = round(share / (1 - share) * len(self._examples))
        often, rest = divmod(wanted, len(rows))
        some = [rows[i * len(rows) // rest] for i in range(rest)]
        for place, row in rows * often + some:
            assert not isinstance(row, UserError)  # a file of the package has no bad rows
            self._examples.append(self._encode(row, place, "train"))

    def _encode(self, row: dict[str, Any], place: str, split: str | None) -> _Example:
        messages = self._format.format_example(row)
        arguments = self._format.template_arguments(row)
        coded = self._chat.encode_conversation(messages, arguments)
        size = self._seq_len + 1
        if not any(path.learnt[1:].any() for path in coded.paths):
            raise UserError("no supervised token: the assistant says nothing")
        # A path without a learnt token is not needed.
        paths = [
            TokenPath(path.ids[:size], path.learnt[:size])
            for path in coded.paths
            if path.learnt[1:size].any()
        ]
        if not paths:
            prompt = min(int(path.learnt.argmax()) for path in coded.paths if path.learnt.any())
            raise UserError(
                f"the prompt alone takes {prompt} tokens and data.seq_len={self._seq_len}: "
                "nothing is left to learn"
            )
        question = next(text_of(message) for message in messages if message["role"] == "user")
        sha = hashlib.sha256(json.dumps(messages, sort_keys=True, default=str).encode()).hexdigest()
        first = int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big")
        return _Example(
            paths=paths,
            trees=self._trees(paths),
            split=split,
            position=first / 2**48,
            truncated=any(len(path.ids) > size for path in coded.paths),
            answers=coded.answers,
            left_out=coded.left_out,
            line={"id": row.get("id", place), "sha256": sha, "question": question},
        )

    def _trees(self, paths: list[TokenPath]) -> list[Tree]:
        if self._share_prefixes:
            return trees_of(paths, self._seq_len)
        return [tree for path in paths for tree in trees_of([path], self._seq_len)]

    def choose_validation(self, fraction: float) -> None:
        """Assign a split to the examples that have none."""
        open_ones = [example for example in self._examples if example.split is None]
        limit = fraction
        if open_ones and not any(example.split == "validation" for example in self._examples):
            limit = max(fraction, np.nextafter(min(example.position for example in open_ones), 1))
        for example in open_ones:
            example.split = "validation" if example.position < limit else "train"

    def write(self, folder: Path, train: Sources, validation: Sources | None) -> dict[str, Any]:
        """Write arrays and manifest; returns the data card."""
        counts = {split: Counter[str]() for split in ("train", "validation")}
        content = hashlib.sha256()
        with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
            for example in self._examples:
                split = str(example.split)
                for path in example.paths:
                    content.update(path.ids.tobytes())
                    content.update(path.learnt.tobytes())
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
                )
                line = {**example.line, "split": split, "tokens": tokens}
                manifest.write(json.dumps(line, default=str) + "\n")
        for split in counts:
            own = [example for example in self._examples if example.split == split]
            if not own:
                raise UserError(
                    self._empty_split_message(split, validation if split == "validation" else train)
                )
            trees = [tree for example in own for tree in example.trees]
            for name in TREE_ARRAYS:
                array = np.concatenate([getattr(tree, name) for tree in trees])
                np.save(folder / f"{split}.{name}.npy", array)
            offsets = np.cumsum([0, *map(len, trees)]).astype(np.int64)
            np.save(folder / f"{split}.offsets.npy", offsets)
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
        if self._other_split:
            words.append(f"{self._other_split.total()} belong to the other split")
        words.append(
            'give rows with at least two different questions, rows with "split", or data.validation'
        )
        return "; ".join(words)
