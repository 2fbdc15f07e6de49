"""Conversations from files to token ids: rows in many shapes, encoded once, kept on disk and found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_llm.corpus.rows import JSON_ENDINGS, json_rows, parquet_rows
from lit_llm.corpus.sources import STDLIB, list_files
from lit_llm.corpus.workspace import sync, workspace_beside
from lit_llm.data.chat import ChatFormat, Message
from lit_llm.data.docstrings import docstring_rows
from lit_llm.errors import UserError

Sources = str | list[str] | dict[str, int]
GENERAL = "general"
_GENERAL_FILE = Path(__file__).with_name("general.jsonl")
_FORMAT = 2  # raise when what lies on disk, or how it is made, changes


@dataclass(frozen=True)
class Conversations:
    """Encoded examples of one split.

    Attributes:
        ids: int32 (tokens,), one example after the other.
        spoken: bool (tokens,), True where the assistant speaks.
        offsets: int64 (examples + 1,), where each begins.
    """

    ids: np.ndarray
    spoken: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, spoken) of one example."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[part], self.spoken[part]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 (examples,)."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> np.ndarray:
        """Labels of each example, int64 (examples,): what the assistant speaks, the very first token left out."""
        begins = self.offsets[:-1]
        return np.add.reduceat(self.spoken, begins, dtype=np.int64) - self.spoken[begins]


def read_rows(sources: Sources) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place to name in an error, row) of every row of the sources.

    Args:
        sources: JSONL or parquet files or globs; "stdlib": questions made of docstrings; "general": eighty simple
            questions of general knowledge, to be rehearsed. A mapping says how often each is repeated.

    Raises:
        UserError: nothing matches, a file of another kind, a broken row (names file and line).
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


def _read_source(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if pattern == STDLIB:
        yield from ((f"{STDLIB}:{row['id']}", row) for row in docstring_rows())
        return
    for path in _files(pattern):
        name = path.name.lower()
        if name.endswith(".parquet"):
            yield from ((f"{path}:{number}", row) for number, row in parquet_rows(path))
        elif name.endswith(JSON_ENDINGS):
            yield from ((f"{path}:{number}", row) for number, row in json_rows(path))
        else:
            raise UserError(
                f"{path}: instructions are read from .jsonl, .json, .jsonl.gz and .parquet files"
            )


def to_messages(row: dict[str, Any]) -> list[Message]:
    """The conversation in a row of one of the usual shapes.

    {"messages": [{"role", "content"}]}; {"conversations": [{"from": "human" | "gpt" | "system", "value"}]};
    {"prompt", "completion" or "response"}; {"question", "answer"}; {"instruction", "input" (may be absent), "output"}.

    Raises:
        UserError: none of these.
    """
    if "messages" in row:
        return row["messages"]
    if "conversations" in row:
        roles = {"human": "user", "gpt": "assistant"}
        turns = row["conversations"]
        if isinstance(turns, list) and all(
            isinstance(turn, dict) and {"from", "value"} <= set(turn) for turn in turns
        ):
            return [
                {"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]}
                for turn in turns
            ]
        raise UserError("'conversations' must be a list of {from, value}")
    for asked, answered in (
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
    ):
        if asked in row and answered in row:
            return _pair(row[asked], row[answered])
    if "instruction" in row and "output" in row:
        extra = row.get("input")
        return _pair(
            f"{row['instruction']}\n\n{extra}" if extra else row["instruction"], row["output"]
        )
    keys = ", ".join(map(str, row)) or "none"
    raise UserError(
        f"no conversation in the row: 'messages' (or 'conversations', 'prompt' and 'completion', 'question' and "
        f"'answer', 'instruction' and 'output') is looked for, its keys are {keys}"
    )


def _pair(question: Any, answer: Any) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def encoded_conversations(
    cache_dir: Path,
    *,
    train: Sources,
    validation: Sources | None,
    validation_fraction: float,
    format_example: Callable[[dict[str, Any]], list[Message]],
    format_version: str,
    chat: ChatFormat,
    seq_len: int,
    bad_rows: Literal["raise", "skip"],
) -> tuple[Path, bool]:
    """The folder of these sources' encoded conversations under ``cache_dir``, made if it is not there; and whether it
    was.

    It holds, for either split, ids.npy, spoken.npy and offsets.npy; manifest.jsonl with a line an example; and
    datacard.json. An example is cut to seq_len + 1 tokens. A row without a ``split`` of its own goes to validation,
    where none is given, by a hash of its first user message: the same question never is in both.

    Raises:
        UserError: a bad row, with file and line (``bad_rows`` "skip" counts it instead); no example left in a split.
    """
    settings = {"format": _FORMAT, "train": train, "validation": validation, "fraction": validation_fraction,
                "formatted by": format_version, "template": chat.template, "tokenizer": chat.tokenizer.fingerprint(),
                "seq_len": seq_len, "bad_rows": bad_rows}  # fmt: skip
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
        card = _encode(
            workspace,
            train,
            validation,
            validation_fraction,
            format_example,
            chat,
            seq_len,
            bad_rows,
        )
        (workspace / "datacard.json").write_text(
            json.dumps(card | {"settings": settings}, indent=2), encoding="utf-8"
        )
        sync(workspace)
        os.rename(workspace, output)
    return output, False


def load_conversations(folder: Path, split: str) -> Conversations:
    """One split of an encoded folder, memory-mapped."""
    parts = [
        np.load(folder / f"{split}.{name}.npy", mmap_mode="r")
        for name in ("ids", "spoken", "offsets")
    ]
    return Conversations(*parts)


def _encode(
    folder: Path,
    train: Sources,
    validation: Sources | None,
    fraction: float,
    format_example: Callable[[dict[str, Any]], list[Message]],
    chat: ChatFormat,
    seq_len: int,
    bad_rows: str,
) -> dict[str, Any]:
    """Write the arrays and the manifest; returns the data card."""
    arrays: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        "train": ([], []),
        "validation": ([], []),
    }
    counts = {split: Counter[str]() for split in arrays}
    dropped: Counter[str] = Counter()
    content = hashlib.sha256()
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for given, sources in (("train", train), ("validation", validation)):
            for place, row in read_rows(sources) if sources else ():
                try:
                    messages = format_example(row)
                    ids, spoken = _encode_one(messages, chat, seq_len)
                except UserError as error:
                    if bad_rows == "raise":
                        raise UserError(f"{place}: {error}") from None
                    dropped[str(error)] += 1
                    continue
                split = given
                if validation is None:
                    split = (
                        row["split"] if row.get("split") in arrays else _split(messages, fraction)
                    )
                truncated = len(ids) > seq_len + 1
                ids, spoken = ids[: seq_len + 1], spoken[: seq_len + 1]
                for parts, array in zip(
                    arrays[split], (np.array(ids, np.int32), np.array(spoken)), strict=True
                ):
                    parts.append(array)
                    content.update(array.tobytes())
                content.update(split.encode())
                counts[split].update(
                    examples=1,
                    tokens=len(ids),
                    supervised_tokens=sum(spoken[1:]),
                    truncated=truncated,
                )
                sha = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
                line = {"id": row.get("id", place), "split": split, "tokens": len(ids), "sha256": sha,
                        "question": _question(messages)}  # fmt: skip
                manifest.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    for split, (all_ids, all_spoken) in arrays.items():
        if not all_ids:
            where = "data.validation" if split == "validation" and validation else "data.sources"
            raise UserError(
                f"{where}: no usable example for {split} in {train if split == 'train' else validation!r}"
            )
        np.save(folder / f"{split}.ids.npy", np.concatenate(all_ids))
        np.save(folder / f"{split}.spoken.npy", np.concatenate(all_spoken))
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in all_ids])]).astype(np.int64)
        np.save(folder / f"{split}.offsets.npy", offsets)
    return {
        "kind": "instructions",
        "content": content.hexdigest(),
        "splits": {split: dict(count) for split, count in counts.items()},
        "dropped": dict(dropped),
    }


def _encode_one(
    messages: list[Message], chat: ChatFormat, seq_len: int
) -> tuple[list[int], list[bool]]:
    """Ids and mask, after seeing that something is left to learn within ``seq_len``."""
    ids, spoken = chat.encode(messages)
    if not any(spoken[1:]):
        raise UserError("no supervised token: the assistant says nothing")
    if not any(spoken[1 : seq_len + 1]):
        raise UserError(
            f"the prompt alone takes {spoken.index(True)} tokens and data.seq_len={seq_len}: nothing is left to learn"
        )
    return ids, spoken


def _split(messages: list[Message], fraction: float) -> str:
    position = (
        int.from_bytes(hashlib.sha256(_question(messages).encode()).digest()[:6], "big") / 2**48
    )
    return "validation" if position < fraction else "train"


def _question(messages: list[Message]) -> str:
    """The first thing the user says."""
    return next(message["content"] for message in messages if message["role"] == "user")
