"""Rows of many formats from files, encoded to conversations of token ids and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_llm.data.blocks import IGNORE
from lit_llm.data.conversations import write_conversations
from lit_llm.data.examples import Encoder, Example
from lit_llm.data.rows.contamination import contaminated, evaluation_items
from lit_llm.data.rows.mixing import contributions, repeated, spread
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.data.rows.row_files import GENERAL, Sources, file_key, files_of, read_rows, weights_of
from lit_llm.data.rows.shapes import split_of
from lit_llm.data.rows.splits import held_out
from lit_llm.errors import UserError
from lit_llm.io.atomic import sync, workspace_beside


def encoded_conversations(
    cache_dir: Path,
    *,
    train: Sources,
    validation: Sources | None,
    validation_fraction: float,
    encoder: Encoder,
    bad_rows: Literal["raise", "skip"],
    rehearsal: float = 0.0,
    policy: RowPolicy,
) -> tuple[Path, bool]:
    """Encode the rows of these sources, or find them in the cache.

    The folder holds, for each split, the arrays of `Conversations`, and an array of each of the
    examples' facts; manifest.jsonl with a line per example; and datacard.json.

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
        encoder: makes the examples of a row.
        bad_rows: "raise" reports the first bad row, "skip" leaves out and counts bad rows.
        rehearsal: share of the examples that are questions of "general", added to those of
            ``train``.
        policy: what is learnt of a row, and how sources are mixed.

    Returns:
        The folder, and whether it was in the cache.

    Raises:
        UserError: a bad row, with file and line (unless ``bad_rows`` is "skip"); a split without
            examples.
    """
    settings = {"train": train, "validation": validation, "fraction": validation_fraction,
                "bad_rows": bad_rows, **encoder.key()}  # fmt: skip
    if rehearsal:
        settings["rehearsal"] = rehearsal
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in [
        *_files_once("data.sources", train),
        *_files_once("data.validation", validation or []),
    ]:
        digest.update(json.dumps(file_key(path)).encode())
    items = evaluation_items(policy.decontaminate)
    digest.update(json.dumps(items).encode())
    output = cache_dir / encoder.kind / digest.hexdigest()[:16]
    if (output / "datacard.json").is_file():
        return output, True
    output.parent.mkdir(parents=True, exist_ok=True)
    with workspace_beside(output) as workspace:
        if (output / "datacard.json").is_file():
            return output, True
        encoded = _Encoded(encoder, bad_rows, policy)
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


class _Encoded:
    """Encoded examples, and counts of the rows that were left out."""

    def __init__(self, encoder: Encoder, bad_rows: str, policy: RowPolicy):
        self._encoder, self._bad_rows, self._policy = encoder, bad_rows, policy
        self._examples: list[Example] = []
        self._dropped: Counter[str] = Counter()
        self._other_split: Counter[str] = Counter()
        self._own_split: Counter[str] = Counter()  # of rows that name it themselves
        self._contaminated: Counter[str] = Counter()
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
                    made = self._encoder.encode(row, place, own if whole else split, pattern)
                    self._examples += made
                    self._own_split.update([own] * len(made) if own else [])
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
            usable += self._encoder.encode(row, place, "train", GENERAL)
        if not usable:
            raise UserError(
                "data.rehearsal: no general question fits "
                f"data.seq_len={self._encoder.seq_len}; raise it, or set data.rehearsal=0"
            )
        wanted = round(share / (1 - share) * len(self._examples))
        self._examples += repeated(usable, [False] * len(usable), wanted)

    def decontaminate(self, items: Mapping[str, list[str]]) -> None:
        """Leave out training examples that share words with evaluation items, and count them."""
        tested = [example for example in self._examples if example.split != "validation"]
        if not items:
            return
        decode = self._encoder.chat.tokenizer.decode
        words = ["\n".join(decode(path.ids, True) for path in e.paths) for e in tested]
        found = contaminated(words, items)
        gone = {id(e): name for e, name in zip(tested, found, strict=True) if name is not None}
        self._contaminated.update(gone.values())
        self._examples = [example for example in self._examples if id(example) not in gone]

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
        own: dict[str, list[Example]] = {pattern: [] for pattern in weights}
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
            "too_long": {key: self._encoder.too_long[key] for key in counted},
            "contaminated": dict(self._contaminated),
            "rows_of_weight_0": self._encoder.weightless,
            "sources": self._by_source,
            **self._encoder.facts([e for e in self._examples if e.split == "train"]),
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
                content.update(repr(example.facts).encode() if example.facts else b"")
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
            for name in own[0].facts:
                values = [example.facts[name] for example in own for _ in example.trees]
                np.save(folder / f"{split}.{name}.npy", np.array(values, np.float32))
        return {
            "kind": self._encoder.kind,
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
        if self._encoder.too_long["dropped"]:
            words.append(
                f"{self._encoder.too_long['dropped']} are longer than "
                f"data.seq_len={self._encoder.seq_len} allows; raise it, or take data.too_long=cut"
            )
        if self._encoder.weightless:
            words.append(f"{self._encoder.weightless} have the weight 0")
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
