"""What a corpus build is told: sources, cleaning blocks, mixture, tokenizer, machine.

Every block is a section that ``null`` switches off. The defaults suit text of any language and
    kind: they repair,
redact, deduplicate, and drop what is no text; what is good text is a question of purpose, which
``configs/corpus/`` answers for web pages and source code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lit_llm.corpus.block import Block
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
    """Evaluation sets that the corpus must not contain; see ``decontaminate``.

    Attributes:
        files: JSONL files; every string in a row counts.
        fields: of a row, the fields to take. None: all.
        ngram: words in a row that a document may not share with an evaluation text.
        shortest: evaluation texts of fewer words are left out.
    """

    files: tuple[str, ...]
    fields: tuple[str, ...] | None = None
    ngram: int = 13
    shortest: int = 8

    def __post_init__(self) -> None:
        check_section(self, "evaluations")


@dataclass(frozen=True)
class MixtureSettings:
    """How much of each source training takes.

    Attributes:
        temperature: shares are the sources' weights (sizes, where all weigh the same) to the power
            1 / temperature: above 1 small sources gain (arXiv:1901.07291).
        max_epochs: passes over a source, at most; more than 4 add little (arXiv:2305.16264). What a
            source may not take goes to the others.
        tokens: of the training run, by which passes are counted. None: all sources once.
    """

    temperature: float = 1.0
    max_epochs: float = 4.0
    tokens: float | None = None

    def __post_init__(self) -> None:
        check_section(self, "mixture")


def _any_language() -> GopherQuality:
    # Of manuals with markup and code a third of the words have no letter, of a page with a table of
    # figures three quarters: of 400 package documents the papers' limit of 0.8 dropped 93%. What is
    # written without spaces is one word a sentence: no limit for words holds in Chinese, Japanese
    # and Thai. A list is no junk, and neither is a dialogue whose lines begin with dashes.
    return GopherQuality(
        min_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
        max_bullet_lines_ratio=None,
        max_non_alpha_words_ratio=0.2, min_stop_words=None, by_sense=True,
    )  # fmt: skip


def _repetition_of_any_language() -> GopherRepetition:
    # With the papers' limits and ``min_top_n_gram`` 2 as the default, 53 of the 90 good short texts
    # in tests/corpus/short_texts.py were dropped: for the rules and cells of a table, for a
    # refrain, for what English web pages of a thousand words are measured by. The rules of
    # paragraphs are off, as in FineWeb-2: equal lines are found anyway.
    return GopherRepetition(
        dup_para_frac=None, dup_para_char_frac=None, min_top_n_gram=10, min_repeated_lines=5,
        min_repeated_words=25, min_line_width=20, by_sense=True, by_language=True,
    )  # fmt: skip


def _all_licenses() -> LicenseFilter:
    return LicenseFilter(tuple(GROUPS), keep_unknown=True)


@dataclass(frozen=True)
class CorpusConfig:
    """Everything that decides what is in a corpus, and where and how it is built.

    Attributes:
        sources: where text comes from.
        normalize: Unicode NFC, mojibake undone, white space; ``code: true`` leaves white space
            alone.
        opt_out: addresses and flags of publishers who do not want their texts trained on.
        language: which language a document is in, and which are kept.
        gopher_repetition: documents that repeat themselves. By default words that stand there once
            are no repetition.
        gopher_quality: documents that do not look like prose. The default is what holds in any
            language.
        c4: C4's rules, for pages of English prose.
        fineweb: lists, menus and tables, by FineWeb's rules.
        privacy: personal data and keys become placeholders.
        license: licences as SPDX expressions, and which are allowed. The default allows all and
            notes them.
        dedup: exact copies, and near ones unless ``threshold`` is null.
        evaluations: sets that the corpus must not contain.
        mixture: how much of each source training takes.
        tokenizer: a tokenizer.json or its folder. None trains a byte-level BPE on a sample of the
            mixture.
        vocab_size: of a trained tokenizer. None: 32,768, or what the text supports.
        validation_fraction: share of documents held out, chosen by a hash of their ids; 0 makes no
            such split.
        max_bad_fraction: of the documents read, how many may be damaged (files that cannot be
            opened or are cut, rows that are no JSON, bytes that are no text of any encoding) before
            the build stops. Empty, binary and unwanted ones do not count.
        keep_work: keep what stages made, so that the next build with other settings starts from
            there. It holds the text once more.
        runner: "local", or "ray" for a cluster whose nodes all see the sources and the output
            folder.
        address: of the Ray cluster; None starts one here.
        workers: parts cleaned at a time; memory is theirs times ``part_bytes`` times about eight.
            None: a core each.
        part_bytes: of input in a part at most, the unit of work and of resuming. The result does
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

    def blocks(self) -> tuple[Block, ...]:
        """The steps that look at one document, in the order in which they run: cheap and lawful
        ones first."""
        steps = (
            self.opt_out, self.normalize, self.language, self.license, self.gopher_repetition,
            self.c4,
            self.gopher_quality, self.fineweb, self.privacy,
        )  # fmt: skip
        return tuple(step for step in steps if step is not None)

    def content(self) -> dict[str, Any]:
        """The settings that decide what is in the corpus, without those that say where and how it
        is built."""
        machine = ("keep_work", "runner", "address", "workers", "part_bytes", "max_bad_fraction")
        content = {name: value for name, value in asdict(self).items() if name not in machine}
        for source in content["sources"]:
            if not source["exclude"]:  # corpora of before stay found
                del source["exclude"]
        return content


def plain(
    sources: list[Source], tokenizer: str | None, vocab_size: int | None, validation_fraction: float
) -> CorpusConfig:
    """A corpus of the texts as they are, copies left out: what source code needs, and texts that
    are clean already."""
    return CorpusConfig(
        sources=sources, normalize=Normalize(code=True), opt_out=None, language=None,
        gopher_repetition=None,
        gopher_quality=None, privacy=None, license=None,
        dedup=Dedup(threshold=None, normalize=False),
        tokenizer=tokenizer, vocab_size=vocab_size, validation_fraction=validation_fraction,
        keep_work=False,
        workers=1,  # there is little to do; starting others would take longer
    )  # fmt: skip
