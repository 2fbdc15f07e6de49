"""Corpus folder: load it, check it, and read its data card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_llm.corpus.output.shards import check_shards, shards_digest
from lit_llm.corpus.storage.transaction import finish, pending
from lit_llm.errors import UserError
from lit_llm.io.locks import lock_folder
from lit_llm.models.tokenizer import Tokenizer

# Increase when the folder's layout or the meaning of a setting changes; old corpora are then built
# again.
FORMAT = 4
_REBUILD = "remove the corpus and rebuild it"


@dataclass(frozen=True)
class Corpus:
    """A built corpus folder.

    Attributes:
        path: the folder.
        datacard: content of datacard.json; see ``card``.
        train_dirs, validation_dirs: source name -> litdata dataset folder.
    """

    path: Path
    datacard: dict[str, Any]
    train_dirs: dict[str, Path]
    validation_dirs: dict[str, Path]

    @classmethod
    def load(cls, folder: str | Path) -> Corpus:
        """Open a corpus folder, and check that every file is there with its full size.

        If a build or removal was killed while it moved its files into place, this completes it.

        Raises:
            UserError: names the file that is missing or broken.
        """
        folder = Path(folder).expanduser()
        if pending(folder):
            with lock_folder(folder):
                finish(folder)
        card_file = folder / "datacard.json"
        card = read_card(folder)
        try:
            version, splits = card["format"], card["splits"]
            expected = {
                (split, name): part["tokens"]
                for split in splits
                for name, part in splits[split].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{card_file}: broken ({error!r}); {_REBUILD}") from error
        if version != FORMAT:
            raise UserError(
                f"{card_file}: written in format {version}, this version reads {FORMAT}; {_REBUILD}"
            )
        for (split, name), tokens in expected.items():
            shards = folder / "shards" / split / name
            if (found := check_shards(shards)) != tokens:
                raise UserError(
                    f"{shards}: holds {found} tokens, the data card says {tokens}; {_REBUILD}"
                )
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            raise UserError(f"{folder / 'tokenizer' / 'tokenizer.json'}: missing; {_REBUILD}")
        train, validation = (
            {name: folder / "shards" / split / name for name in splits.get(split, {})}
            for split in ("train", "validation")
        )
        return cls(folder, card, train, validation)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer."""
        return Tokenizer.from_pretrained(self.path / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over sources and settings; see ``build.fingerprint``."""
        return self.datacard["fingerprint"]

    @property
    def content(self) -> str:
        """sha256 (hex) over every shard's tokens, by split and source.

        It does not depend on when and where the corpus was built.
        """
        parts = [
            [split, name, shards_digest(self.path / "shards" / split / name)]
            for split, sources in sorted(self.datacard["splits"].items())
            for name in sorted(sources)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def validation_bytes(self) -> dict[str, int]:
        """UTF-8 bytes of validation text by source: the denominator of bits per byte."""
        return {
            name: part["bytes"]
            for name, part in self.datacard["splits"].get("validation", {}).items()
        }

    @property
    def mixture(self) -> dict[str, float]:
        """Share of training of each source, for which the corpus was built."""
        return {row["source"]: row["share"] for row in self.datacard["mixture"]}

    def tokens(self, split: str) -> int:
        """Number of tokens in "train" or "validation", including the separator of each document."""
        return sum(part["tokens"] for part in self.datacard["splits"].get(split, {}).values())


def read_card(folder: Path) -> dict[str, Any]:
    """Read datacard.json.

    Raises:
        UserError: the file is missing or broken.
    """
    file = folder / "datacard.json"
    if not file.is_file() and (folder / "metrics.csv").is_file():
        raise UserError(f"{folder}: the folder of a run, not of a corpus; a run uses a corpus")
    if not file.is_file():
        raise UserError(f"{file}: no such file; {folder} is not a corpus folder")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: broken ({error!r}); {_REBUILD}") from error
    if not isinstance(card, dict):
        raise UserError(f"{file}: broken (not an object); {_REBUILD}")
    return card
