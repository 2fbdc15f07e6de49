"""Samples of documents to train or measure a tokenizer on, chosen by the digests of the texts.

Therefore the sample does not depend on the machine or on how the corpus is split into pieces. A
larger sample contains every smaller one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import texts, utf8, with_column
from lit_llm.corpus.config import MixtureSettings
from lit_llm.corpus.filters.language import IdentifyLanguage
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.mixture import shares
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.storage.store import read_tables
from lit_llm.errors import UserError

# More text does not change a vocabulary. It costs 0.2 s per megabyte.
TRAINING_BYTES = 200_000_000
VOCAB_SIZE = 32_768  # or fewer, if the text does not support so many


def fewer_tokens(size: int) -> str | None:
    """A message if a vocabulary has fewer than `VOCAB_SIZE` tokens, else None."""
    if size >= VOCAB_SIZE:
        return None
    return (
        f"the tokenizer has {size:,} tokens, not {VOCAB_SIZE:,}: the text is too small and has no "
        "more pairs that occur twice; --vocab_size sets a number"
    )


COLUMNS = ["text", "source", "language", "domain", "sha256", "bytes"]


def rates(sizes: Mapping[str, int], of_sample: Mapping[str, float], total: int) -> dict[str, float]:
    """Share of each source's documents to take, for a sample of ``total`` bytes.

    Args:
        sizes: bytes by source.
        of_sample: share of each source in the sample; the shares sum to 1. If a source is too small
            for its share, the sample is smaller.
        total: bytes of the sample.
    """
    total = min(total, sum(sizes.values()))
    return {name: min(1.0, total * of_sample[name] / size) for name, size in sizes.items() if size}


def take(table: pa.Table, by_source: Mapping[str, float]) -> pa.Table:
    """Rows of ``table`` that are in the sample of these rates; it has "sha256" and "source".

    The first 48 bits of a text's SHA-256 are a uniform random number. A document is taken if that
    number is below its source's rate.
    """
    chosen = [
        int(sha256[:12], 16) < by_source[source] * 2**48
        for sha256, source in zip(
            table["sha256"].to_pylist(), table["source"].to_pylist(), strict=True
        )
    ]
    return table.filter(pa.array(chosen, pa.bool_()))


@dataclass(frozen=True)
class Sample:
    """Documents to train or measure a tokenizer on.

    Attributes:
        name: readable description of the text.
        sizes: bytes by source, of all documents that ``read`` yields.
        rates: share of each source's documents that is taken.
        read: yields the documents as tables of `COLUMNS`; called once for each pass.
    """

    name: str
    sizes: Mapping[str, int]
    rates: Mapping[str, float]
    read: Callable[[], Iterator[pa.Table]]

    @property
    def bytes(self) -> int:
        """The approximate number of bytes in the sample."""
        return round(sum(size * self.rates[name] for name, size in self.sizes.items() if size))

    def tables(self) -> Iterator[pa.Table]:
        """The tables of the sample, in the order of the documents."""
        return (taken for table in self.read() if len(taken := take(table, self.rates)))


def training_sample(corpus: Corpus, total: int = TRAINING_BYTES) -> Sample:
    """A sample of the training split with the sources in the proportions of the mixture.

    The build trains its own tokenizer on this sample. The proportions are of bytes, and
    ``mixture.tokens`` is ignored, because tokens cannot be counted before there is a tokenizer.
    """
    card = corpus.datacard
    sizes = {
        name: sum(_bytes(card, split).get(name, 0) for split in card["splits"])
        for name in corpus.train_dirs
    }
    settings = MixtureSettings(**{**card["settings"]["mixture"], "tokens": None})
    mixture = shares(sizes, {row["source"]: row["weight"] for row in card["mixture"]}, settings)
    return Sample(
        f"mixture of {corpus.path}",
        _bytes(card, "train"),
        rates(sizes, mixture, total),
        _documents(corpus, "train"),
    )


def split_sample(corpus: Corpus, split: str, total: int) -> Sample:
    """A sample of a split, with the sources in proportion to their sizes.

    Raises:
        UserError: the corpus has no such split.
    """
    sizes = _bytes(corpus.datacard, split)
    if not sizes:
        raise UserError(f"{corpus.path}: has no {split} split; it has {', '.join(_splits(corpus))}")
    return Sample(
        f"{split} split of {corpus.path}", sizes, _alike(sizes, total), _documents(corpus, split)
    )


def file_sample(patterns: Sequence[str], total: int, text_field: str = "text") -> Sample:
    """A sample of the texts in files, without cleaning; every document is equally likely.

    The files are read twice.

    Args:
        patterns: paths, folders, globs or URLs.
        total: bytes of text.
        text_field: the field with the text in rows.

    Raises:
        UserError: no file, or no text in them.
    """
    read = functools.partial(_file_tables, patterns, text_field)
    sizes: dict[str, int] = {}
    for table in read():
        for source, size in zip(
            table["source"].to_pylist(), table["bytes"].to_pylist(), strict=True
        ):
            sizes[source] = sizes.get(source, 0) + size
    if not sum(sizes.values()):
        raise UserError(f"--files: no usable text in {', '.join(map(repr, patterns))}")
    return Sample(", ".join(patterns), sizes, _alike(sizes, total), read)


def with_language(table: pa.Table) -> pa.Table:
    """``table`` with "language" filled in where the source does not give it."""
    found = IdentifyLanguage().apply(table)["language"]
    return with_column(table, "language", pc.coalesce(table["language"], found))


def _splits(corpus: Corpus) -> list[str]:
    return [split for split, sources in corpus.datacard["splits"].items() if sources]


def _bytes(
    card: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]], split: str
) -> dict[str, int]:
    return {name: part["bytes"] for name, part in card["splits"].get(split, {}).items()}


def _alike(sizes: Mapping[str, int], total: int) -> dict[str, float]:
    """The same rate for all sources."""
    everything = sum(sizes.values())
    return rates(sizes, {name: size / everything for name, size in sizes.items()}, total)


def _documents(corpus: Corpus, split: str) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        for file in sorted((corpus.path / "documents").iterdir()):
            for table in read_tables(file, [*COLUMNS, "split"]):
                yield table.filter(pc.equal(table["split"], split)).select(COLUMNS)

    return read


def _file_tables(patterns: Sequence[str], text_field: str) -> Iterator[pa.Table]:
    for part in list_parts(list(patterns), text_field=text_field):
        for table in read_part(part):
            table = table.filter(
                pc.and_(
                    pc.is_null(table["dropped"]), pc.greater(pc.binary_length(table["text"]), 0)
                )
            )
            table = with_column(table, "bytes", pc.binary_length(table["text"]))
            hashed = [hashlib.sha256(data).hexdigest() for data in utf8(texts(table["text"]))]
            yield with_column(table, "sha256", pa.array(hashed, pa.string())).select(COLUMNS)
