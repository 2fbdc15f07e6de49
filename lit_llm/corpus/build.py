"""From sources to a corpus folder: exact deduplication, split, tokenizer, shards, manifest, data card.

The text is streamed several times instead of being held: to see what is there, to train the tokenizer, to encode.
A folder under its final name is complete: it is built beside it under a hidden name and renamed.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_llm.corpus.documents import Document
from lit_llm.corpus.read import iter_documents
from lit_llm.corpus.shards import ShardWriter, check_shards, shards_digest, token_dtype
from lit_llm.corpus.sources import Sources, list_files
from lit_llm.corpus.workspace import sync, workspace_beside
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

_FORMAT = 2  # raise when the folder's layout or the meaning of a setting changes: old corpora are then built anew
_TOKENIZER_SAMPLE_BYTES = 200_000_000  # more text does not change a vocabulary, it costs 0.2 s a megabyte
_BATCH_BYTES = 4_000_000
_REBUILD = "remove the corpus and rebuild it"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A built corpus folder.

    Attributes:
        path: the folder.
        datacard: what datacard.json says (documents, bytes, tokens by split and source, drops, settings).
        train_dirs, validation_dirs: source name -> litdata dataset folder.
    """

    path: Path
    datacard: dict[str, Any]
    train_dirs: dict[str, Path]
    validation_dirs: dict[str, Path]

    @classmethod
    def load(cls, folder: str | Path) -> Corpus:
        """Open a corpus folder after checking that every file is there in its full size.

        Raises:
            UserError: names the file that is missing or broken.
        """
        folder = Path(folder).expanduser()
        card_file = folder / "datacard.json"
        if not card_file.is_file():
            raise UserError(f"{card_file}: no such file; {folder} is not a corpus folder")
        try:
            card = json.loads(card_file.read_text(encoding="utf-8"))
            version, splits = card["format"], card["splits"]
            expected = {(split, name): part["tokens"] for split in splits for name, part in splits[split].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{card_file}: broken ({error!r}); {_REBUILD}") from error
        if version != _FORMAT:
            raise UserError(f"{card_file}: written in format {version}, this version reads {_FORMAT}; {_REBUILD}")
        for (split, name), tokens in expected.items():
            shards = folder / "shards" / split / name
            if (found := check_shards(shards)) != tokens:
                raise UserError(f"{shards}: holds {found} tokens, the data card says {tokens}; {_REBUILD}")
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer' / 'tokenizer.json'}: missing; {_REBUILD}")
        train, validation = (
            {name: folder / "shards" / split / name for name in splits.get(split, {})}
            for split in ("train", "validation")
        )
        return cls(folder, card, train, validation)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_pretrained(self.path / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over sources and settings; see ``fingerprint``."""
        return self.datacard["fingerprint"]

    @property
    def content(self) -> str:
        """sha256 (hex) over every shard's tokens, by split and source: equal wherever and whenever it was built."""
        parts = [
            [split, name, shards_digest(self.path / "shards" / split / name)]
            for split, sources in sorted(self.datacard["splits"].items())
            for name in sorted(sources)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def validation_bytes(self) -> dict[str, int]:
        """UTF-8 bytes of validation text by source: the denominator of bits per byte."""
        return {name: part["bytes"] for name, part in self.datacard["splits"]["validation"].items()}

    def tokens(self, split: str) -> int:
        """Tokens in "train" or "validation", the separator before each document included."""
        return sum(part["tokens"] for part in self.datacard["splits"][split].values())


def fingerprint(sources: Sources, settings: dict[str, Any]) -> str:
    """sha256 (hex) over the settings and every input file's name, size and modification time.

    Equal fingerprints let a corpus be reused without reading the text again.

    Args:
        sources: as for ``build_corpus``.
        settings: tokenizer, vocab_size, text_field, validation_fraction.
    """
    files = list_files(sources)
    content = {**settings, "format": _FORMAT, "python": platform.python_version()}
    if settings.get("tokenizer") is not None:
        content["tokenizer"] = Tokenizer.from_pretrained(settings["tokenizer"]).fingerprint()
        content.pop("vocab_size", None)  # the given tokenizer decides
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in files:
        digest.update(json.dumps([file.source, file.id, file.size, file.version]).encode())
    return digest.hexdigest()


def cached_corpus(
    cache_dir: str | Path,
    *,
    sources: Sources,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    text_field: str = "text",
    validation_fraction: float = 0.05,
    progress: bool = True,
) -> tuple[Corpus, bool]:
    """The corpus of these sources and settings from ``cache_dir``, built if it is not there; and whether it was.

    It lies at ``<cache_dir>/corpora/<first source>-<fingerprint[:12]>``. Raises as ``build_corpus``.
    """
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "text_field": text_field,
        "validation_fraction": validation_fraction,
    }
    name = f"{list_files(sources)[0].source}-{fingerprint(sources, settings)[:12]}"
    folder = Path(cache_dir).expanduser() / "corpora" / name
    if (folder / "datacard.json").is_file():
        return Corpus.load(folder), True
    return build_corpus(folder, sources=sources, progress=progress, **settings), False


def build_corpus(
    output: str | Path,
    *,
    sources: Sources,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    text_field: str = "text",
    validation_fraction: float = 0.05,
    progress: bool = True,
) -> Corpus:
    """Build a corpus folder, or return the one at ``output`` if it was built from the same sources and settings.

    Of equal texts the first is kept. A document goes to validation when sha256(id), as a fraction of its range, is
    below ``validation_fraction``, so it stays there when others come and go. Where that would leave a split empty, one
    document moves over; a single document gives its tail to validation. Each document is encoded as [eos_id] + ids.

    Args:
        output: the folder to make; must not exist, be empty, or hold the same corpus.
        sources: "stdlib", paths or globs; see ``list_files``.
        tokenizer: a tokenizer.json or its folder; None trains one of ``vocab_size`` on the train split.
        text_field: the field with the text in JSONL and parquet rows.
        validation_fraction: 0 <= fraction < 1; 0 makes no validation split.
        progress: show a bar on a terminal, a line a stage elsewhere (both on stderr).

    Raises:
        UserError: nothing usable in the sources, vocabulary too large for the text, folder in use, disk full.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(f"data.validation_fraction: {validation_fraction} is not in [0, 1)")
    settings: dict[str, Any] = {
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "vocab_size": vocab_size,
        "text_field": text_field,
        "validation_fraction": validation_fraction,
    }
    key = fingerprint(sources, settings)
    output = Path(output).expanduser().absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with workspace_beside(output, progress) as workspace:
            if (output / "datacard.json").is_file():
                corpus = Corpus.load(output)
                if corpus.fingerprint == key:
                    return corpus
                raise UserError(f"{output}: holds a corpus of other sources or settings; name another folder")
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise UserError(f"{output}: is not empty; name another folder")
            _Builder(workspace, sources, settings, progress).run(key)
            sync(workspace)
            os.rename(workspace, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_disk_full(output, sources)) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{output}: cannot be written ({error.strerror}: {error.filename})") from error
        raise
    return Corpus.load(output)


class _Builder:
    """One build into an empty workspace folder: survey, tokenizer, shards, data card."""

    def __init__(self, workspace: Path, sources: Sources, settings: dict[str, Any], progress: bool) -> None:
        self.workspace = workspace
        self.sources = sources
        self.settings = settings
        self.progress = progress
        self.drops: Counter[str] = Counter()
        self.kept = self.bytes = 0
        self.lowest, self.highest = 1.0, 0.0  # of the kept documents' positions

    def run(self, key: str) -> None:
        started = time.perf_counter()
        self._survey()
        tokenizer = self._make_tokenizer()
        tokenizer.save_pretrained(self.workspace / "tokenizer")
        splits = self._write_shards(tokenizer)
        tokens = sum(part["tokens"] for sources in splits.values() for part in sources.values())
        seconds = time.perf_counter() - started
        card = {
            "format": _FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": key,
            "sources": self.sources,
            "settings": self.settings,
            "python": platform.python_version(),
            "tokenizer": {
                "fingerprint": tokenizer.fingerprint(),
                "vocab_size": tokenizer.vocab_size,
                "separator_id": tokenizer.eos_id,
                "trained": self.settings["tokenizer"] is None,
            },
            "documents": self.kept,
            "duplicates": self.drops["duplicate"],
            "dropped": {reason: n for reason, n in sorted(self.drops.items()) if reason != "duplicate"},
            "bytes": self.bytes,
            "tokens": tokens,
            "bytes_per_token": round(self.bytes / tokens, 4),
            "splits": splits,
            "build_seconds": round(seconds, 1),
        }
        text = json.dumps(card, indent=2, ensure_ascii=False, default=list)
        (self.workspace / "datacard.json").write_text(text + "\n", encoding="utf-8")
        self._say(
            f"corpus: {self.kept:,} documents, {self.bytes / 1e6:.1f} MB, {tokens:,} tokens, "
            f"{self.drops['duplicate']} duplicates and {self.drops.total() - self.drops['duplicate']} others dropped, "
            f"{seconds:.0f} s"
        )

    def _survey(self) -> None:
        """Count, and find where the validation split must end for both splits to have text."""
        with self._bar("reading", None) as advance:
            for document, _ in self._documents():
                if document.dropped:
                    self.drops[document.dropped] += 1
                    continue
                size = len(document.text.encode())
                position = _position(document.id)
                self.kept, self.bytes = self.kept + 1, self.bytes + size
                self.lowest, self.highest = min(self.lowest, position), max(self.highest, position)
                advance(size)
        if not self.kept:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.drops.items())) or "the files hold no rows"
            raise UserError(f"data.sources: no usable text in {self.sources!r} ({reasons})")

    def _documents(self) -> Iterator[tuple[Document, str]]:
        """Every document with its text's sha256 (hex; empty for unusable ones), duplicates marked."""
        seen: set[bytes] = set()
        for document in iter_documents(self.sources, self.settings["text_field"]):
            if document.dropped:
                yield document, ""
                continue
            digest = hashlib.sha256(document.text.encode()).digest()
            if digest in seen:
                yield dataclasses.replace(document, dropped="duplicate"), digest.hex()
            else:
                seen.add(digest)
                yield document, digest.hex()

    def _split_documents(self) -> Iterator[tuple[Document, str, str]]:
        """(document, sha256, split); split is empty for dropped ones."""
        fraction = self.settings["validation_fraction"]
        if fraction and self.lowest >= fraction:
            fraction = math.nextafter(self.lowest, 1)
        elif self.highest < fraction:
            fraction = self.highest
        for document, digest in self._documents():
            if document.dropped:
                yield document, digest, ""
            elif self.settings["validation_fraction"] and self.lowest == self.highest and len(document.text) > 1:
                # All documents share an id, most often because there is one: no line lies between them.
                head, tail = _cut(document.text, self.settings["validation_fraction"])
                for part, name, split in ((head, "", "train"), (tail, "#tail", "validation")):
                    half = dataclasses.replace(document, id=document.id + name, text=part)
                    yield half, hashlib.sha256(part.encode()).hexdigest(), split
            else:
                yield document, digest, "validation" if _position(document.id) < fraction else "train"

    def _make_tokenizer(self) -> Tokenizer:
        if self.settings["tokenizer"] is not None:
            tokenizer = Tokenizer.from_pretrained(self.settings["tokenizer"])
            if tokenizer.eos_id is None:
                raise UserError(
                    f"{self.settings['tokenizer']}: no end-of-text token to put between documents; "
                    "name one as eos_token in a tokenizer_config.json beside it"
                )
            return tokenizer
        share = min(1.0, _TOKENIZER_SAMPLE_BYTES / self.bytes)
        self._say(f"corpus: training a tokenizer of {self.settings['vocab_size']:,} tokens")
        texts = (
            document.text
            for document, digest, split in self._split_documents()
            if split == "train" and int(digest[:12], 16) < share * 2**48  # a sample that does not depend on the order
        )
        return Tokenizer.train(texts, self.settings["vocab_size"])

    def _write_shards(self, tokenizer: Tokenizer) -> dict[str, dict[str, dict[str, int]]]:
        """Encode and write all documents and the manifest; returns split -> source -> documents, bytes, tokens."""
        separator = tokenizer.eos_id
        assert separator is not None
        writers: dict[tuple[str, str], ShardWriter] = {}
        splits: dict[str, dict[str, dict[str, int]]] = {"train": {}, "validation": {}}
        with (
            (self.workspace / "manifest.jsonl").open("w", encoding="utf-8") as manifest,
            self._bar("tokenising", self.bytes) as advance,
        ):
            for batch in _batches(self._split_documents()):
                encoded = iter(tokenizer.encode_batch([document.text for document, _, split in batch if split]))
                for document, digest, split in batch:
                    line: dict[str, Any] = {"id": document.id, "source": document.source, "path": document.path}
                    if split:
                        key = (split, document.source)
                        if key not in writers:
                            folder = self.workspace / "shards" / split / document.source
                            writers[key] = ShardWriter(folder, token_dtype(tokenizer.vocab_size))
                            splits[split][document.source] = {"documents": 0, "bytes": 0, "tokens": 0}
                        ids = next(encoded)
                        writers[key].append(separator, ids)
                        size = len(document.text.encode())
                        counts = splits[split][document.source]
                        counts["documents"] += 1
                        counts["bytes"] += size
                        counts["tokens"] += len(ids) + 1
                        line |= {"sha256": digest, "bytes": size, "tokens": len(ids) + 1, "split": split}
                        advance(size)
                    else:
                        line |= {"sha256": digest or None, "dropped": document.dropped}
                    manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
            for writer in writers.values():
                writer.close()
        return splits

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Any]:
        """A function to call with the bytes done; on a terminal it moves a bar with rate and remaining time."""
        from tqdm import tqdm

        hidden = None if self.progress else True  # None: only on a terminal
        with tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=hidden) as bar:
            yield bar.update

    def _say(self, line: str) -> None:
        if self.progress:
            print(line, file=sys.stderr, flush=True)


def _position(doc_id: str) -> float:
    """sha256 of the id as a fraction of its range, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:6], "big") / 2**48


def _cut(text: str, fraction: float) -> tuple[str, str]:
    """Head and tail of a text, the tail about ``fraction`` of it and starting a line; neither is empty."""
    at = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    at = text.rfind("\n", 0, at) + 1 or at
    return text[:at], text[at:]


def _batches(documents: Iterator[tuple[Document, str, str]]) -> Iterator[list[tuple[Document, str, str]]]:
    batch: list[tuple[Document, str, str]] = []
    characters = 0
    for item in documents:
        batch.append(item)
        characters += len(item[0].text) + 100  # dropped documents are lines too
        if characters >= _BATCH_BYTES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _disk_full(output: Path, sources: Sources) -> str:
    """Tokens take 2 or 4 bytes and stand for 2 to 5 bytes of text, so the text's size bounds what is needed."""
    needed = sum(file.size for file in list_files(sources))
    free = shutil.disk_usage(output.parent).free
    return (
        f"{output}: the disk is full; the corpus needs up to {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free "
        "(nothing was left behind); free some space or name a folder on another disk"
    )
