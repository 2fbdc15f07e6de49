"""Configuration of a corpus build: sources, cleaning blocks, mixture, tokenizer, machine.

Every block is a section; ``null`` switches it off. The defaults suit text of any language and kind:
they repair, redact, deduplicate, and drop files that are not text. Which text is good depends on
the purpose; ``configs/corpus/`` has settings for web pages and source code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lit_llm.corpus.block import Block
from lit_llm.corpus.chain import BLOCKS, ExtraBlock, chain, content
from lit_llm.corpus.dedup.duplicates import Dedup
from lit_llm.corpus.filters.language import IdentifyLanguage
from lit_llm.corpus.filters.licensing import LicenseFilter
from lit_llm.corpus.filters.normalize import Normalize
from lit_llm.corpus.filters.optout import OptOut
from lit_llm.corpus.filters.quality import (
    C4Quality,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
)
from lit_llm.corpus.filters.spdx import GROUPS
from lit_llm.corpus.privacy.personal_data import RedactPII
from lit_llm.corpus.ranges import check_section
from lit_llm.corpus.reading.sources import Source


@dataclass(frozen=True)
class Evaluations:
    """Evaluation sets that the corpus must not contain; see ``dedup.decontaminate``.

    Attributes:
        files: JSONL files; every string in a row counts.
        fields: fields of a row to use. None: all.
        ngram: number of consecutive words that a document may not share with an evaluation text.
        shortest: evaluation texts with fewer words are ignored.
    """

    files: tuple[str, ...]
    fields: tuple[str, ...] | None = None
    ngram: int = 13
    shortest: int = 8

    def __post_init__(self) -> None:
        check_section(self, "evaluations")


@dataclass(frozen=True)
class MixtureSettings:
    """Share of each source in the training data.

    Attributes:
        temperature: shares are the sources' weights (sizes, if all weights are equal) to the power
            1 / temperature: above 1, small sources get larger shares (arXiv:1901.07291).
        max_epochs: maximum passes over a source; more than 4 add little (arXiv:2305.16264). The
            share above this limit goes to the other sources.
        tokens: tokens of the training run, used to count passes. None: one pass over all sources.
    """

    temperature: float = 1.0
    max_epochs: float = 4.0
    tokens: float | None = None

    def __post_init__(self) -> None:
        check_section(self, "mixture")


def _any_language() -> GopherQuality:
    # A third of the words have no letter in manuals with markup and code, three quarters in a page
    # with a table of figures: of 400 package documents the papers' limit of 0.8 dropped 93%. In
    # scripts without spaces (Chinese, Japanese, Thai) a sentence is one word, so no limit on words
    # fits. A list is not junk, and neither is a dialogue whose lines begin with dashes.
    return GopherQuality(
        min_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
        max_bullet_lines_ratio=None, max_non_alpha_words_ratio=0.2, min_stop_words=None,
        by_sense=True,
    )  # fmt: skip


def _repetition_of_any_language() -> GopherRepetition:
    # With the papers' limits and ``min_top_n_gram`` 2 as the default, 53 of the 90 good short texts
    # in tests/corpus/short_texts.py were dropped: because of the rules and cells of a table,
    # because of a refrain, or because limits for English web pages of a thousand words do not fit
    # them. The rules of paragraphs are off, as in FineWeb-2: the rules of lines find equal lines
    # anyway.
    return GopherRepetition(
        dup_para_frac=None, dup_para_char_frac=None, min_top_n_gram=10, min_repeated_lines=5,
        min_repeated_words=25, min_line_width=20, by_sense=True, by_language=True,
    )  # fmt: skip


def _all_licenses() -> LicenseFilter:
    return LicenseFilter(tuple(GROUPS), keep_unknown=True)


@dataclass(frozen=True)
class CorpusConfig:
    """Everything that decides the content of a corpus, and where and how it is built.

    Attributes:
        sources: where the text comes from.
        normalize: Unicode NFC, repair of mojibake, white space; ``code: true`` keeps white space as
            it is.
        opt_out: addresses and flags of publishers who do not allow training on their texts.
        language: detects each document's language, and decides which languages are kept.
        gopher_repetition: drops documents that repeat themselves. By default, words that occur once
            are no repetition.
        gopher_quality: drops documents that do not look like prose. The default limits fit any
            language.
        c4: C4's rules, for pages of English prose.
        fineweb: FineWeb's rules, against lists, menus and tables.
        privacy: replaces personal data and keys by placeholders.
        license: licences as SPDX expressions, and which are allowed. The default allows all and
            records them.
        extra_blocks: blocks of your own, each {class_path: mypackage.MyFilter, init_args: {...},
            after: NAME}: a subclass of ``lit_llm.corpus.block.Block``, its arguments, and the step
            after which it runs (a section's name, another extra block's, "read" for the front;
            default: last, on the text as training sees it).
        dedup: drops exact copies, and near copies unless ``threshold`` is null.
        evaluations: sets that the corpus must not contain.
        mixture: share of each source in training.
        tokenizer: a tokenizer.json or its folder. None trains a byte-level BPE on a sample of the
            mixture.
        vocab_size: size of a trained tokenizer. None: 32,768, or fewer if the text is too small.
        validation_fraction: share of documents held out, chosen by a hash of their ids; 0 makes no
            validation split.
        max_bad_fraction: share of the documents that may be damaged (files that cannot be opened or
            are cut, rows that are not JSON, bytes that are not text in any encoding) before the
            build stops. Empty, binary and unwanted documents do not count.
        keep_work: keep the files of the stages, so that the next build with other settings reuses
            them. They hold the text once more.
        runner: "local", or "ray" for a cluster whose nodes all see the sources and the output
            folder.
        address: address of the Ray cluster; None starts one on this machine.
        workers: number of parts cleaned at the same time; memory is about ``workers`` times
            ``part_bytes`` times eight. None: one per core.
        part_bytes: maximum input bytes of a part, the unit of work and of resuming. The result does
            not depend on it.
    """

    sources: list[Source] = field(default_factory=list)
    normalize: Normalize | None = field(default_factory=Normalize)
    opt_out: OptOut | None = field(default_factory=OptOut)
    language: IdentifyLanguage | None = field(default_factory=IdentifyLanguage)
    gopher_repetition: GopherRepetition | None = field(default_factory=_repetition_of_any_language)
    gopher_quality: GopherQuality | None = field(default_factory=_any_language)
    c4: C4Quality | None = None
    fineweb: FineWebQuality | None = None
    privacy: RedactPII | None = field(default_factory=RedactPII)
    license: LicenseFilter | None = field(default_factory=_all_licenses)
    extra_blocks: list[dict[str, Any]] = field(default_factory=list)
    dedup: Dedup | None = field(default_factory=Dedup)
    evaluations: Evaluations | None = None
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    tokenizer: str | None = None
    vocab_size: int | None = None
    validation_fraction: float = 0.05
    max_bad_fraction: float = 1.0
    keep_work: bool = True
    runner: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None
    part_bytes: int = 32_000_000

    def __post_init__(self) -> None:
        check_section(self, "")
        self.blocks()  # a mistake in extra_blocks is told before anything is read

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks that look at one document each, in the order of `chain.BLOCKS`."""
        return chain({name: getattr(self, name, None) for name in BLOCKS}, self.extra_blocks)

    def read_files(self) -> list[str]:
        """Return the SHA-256 (hex) of the files that blocks and evaluations name."""
        named = [file for block in self.blocks() for file in block.inputs()]
        named += self.evaluations.files if self.evaluations else ()
        return [content(file) for file in named]

    def content(self) -> dict[str, Any]:
        """Return the settings that decide the content of the corpus.

        Settings of where and how it is built are left out.
        """
        machine = ("keep_work", "runner", "address", "workers", "part_bytes", "max_bad_fraction")
        decisive = {name: value for name, value in asdict(self).items() if name not in machine}
        for source in decisive["sources"]:
            # An empty `exclude` is left out, so that corpora from before it are still found.
            if not source["exclude"]:
                del source["exclude"]
        del decisive["extra_blocks"]
        if extra := [one.described() for one in self.blocks() if isinstance(one, ExtraBlock)]:
            decisive["extra_blocks"] = extra
        return decisive


def plain(
    sources: list[Source], tokenizer: str | None, vocab_size: int | None, validation_fraction: float
) -> CorpusConfig:
    """Return the settings for a corpus of the texts as they are, without copies.

    For source code, and for texts that are already clean.
    """
    # One worker: there is little work, and starting other processes would take longer.
    return CorpusConfig(
        sources=sources, normalize=Normalize(code=True), opt_out=None, language=None,
        gopher_repetition=None, gopher_quality=None, privacy=None, license=None,
        dedup=Dedup(threshold=None, normalize=False), tokenizer=tokenizer, vocab_size=vocab_size,
        validation_fraction=validation_fraction, keep_work=False, workers=1,
    )  # fmt: skip
