"""Quality filters with the papers' defaults, rule by rule as datatrove applies them.

    from lit_llm.corpus.filters.quality import GopherQuality
    GopherQuality().reasons(["Too short.", None])      # ["gopher_short_doc", "gopher_short_doc"]
    GopherQuality(min_doc_words=10)(table)             # a step of a pipeline, see `block`

Reasons have datatrove's names. A limit of None switches its rule off. Rules are tried in their
order, and the first that fails is the reason. `kernels.words` defines words; characters are code
points.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from lit_llm.corpus.block import Block, Filter, Texts, texts
from lit_llm.corpus.filters.repetition_limits import letters_a_word, limits_of
from lit_llm.corpus.kernels.characters import character_table, terminal_points
from lit_llm.corpus.ranges import check_section
from lit_llm.errors import UserError

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def _limits(*values: float | None, absent: float = math.inf) -> np.ndarray:
    """Make an array of limits; None becomes ``absent``, which switches a rule off."""
    return np.array([absent if value is None else value for value in values], np.float64)


def _rule_names(verdicts: np.ndarray, rules: tuple[str, ...]) -> pa.StringArray:
    """Return the rule of each verdict: 0 becomes null, 1 the first rule."""
    return pa.array([None, *rules], pa.string()).take(pa.array(verdicts))


@dataclass(frozen=True)
class GopherRepetition(Filter):
    """Drop documents that repeat themselves (Rae et al. 2021, arXiv 2112.11446, table A1).

    A repetition is a line, paragraph or n-gram that occurs earlier in the document.

    Attributes:
        dup_line_frac, dup_para_frac: maximum share of lines or paragraphs that are repetitions.
        dup_line_char_frac, dup_para_char_frac: maximum share of the document's characters in those.
        top_n_grams: (n, maximum share of the document's characters in occurrences of its most
            frequent n-gram of words).
        dup_n_grams: (n, maximum share of its characters in n-grams that are repetitions).
        min_top_n_gram: minimum occurrences of the most frequent n-gram. With 1, as in datatrove, a
            text of less than about 25 words, or in a script without spaces, is dropped because of
            words that occur once.
        min_repeated_lines: minimum number of repeated lines (or paragraphs) with which their rules
            drop a document.
        min_repeated_words: minimum number of words in repeated n-grams with which their rules drop
            a document.
        few_limit: maximum share of the document's characters in fewer repetitions than those.
        min_line_width: minimum characters of the lines that ``dup_line_frac`` counts; letters of
            scripts without spaces count twice. The cells of a table are short and the same in many
            rows.
        by_sense: symbols alone, such as the rules of a table, are no line and no word; each letter
            of a script without spaces is a word, and an n-gram has as many letters as n words have
            in the language.
        by_language: for documents in a language that `repetition_limits` has, use its limits
            instead of ``dup_line_frac`` and those of the n-grams.
    """

    name: ClassVar[str] = "gopher_repetition"
    dup_line_frac: float | None = 0.3
    dup_para_frac: float | None = 0.3
    dup_line_char_frac: float | None = 0.2
    dup_para_char_frac: float | None = 0.2
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, float], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )
    min_top_n_gram: int = 1
    min_repeated_lines: int = 1
    min_repeated_words: int = 1
    few_limit: float | None = 0.45
    min_line_width: int = 0
    by_sense: bool = False
    by_language: bool = False

    def __post_init__(self) -> None:
        if any(n < 1 for n, _ in (*self.top_n_grams, *self.dup_n_grams)):
            raise UserError(
                "GopherRepetition: an n-gram has at least one word; give pairs (n, share)"
            )
        check_section(self, "gopher_repetition")

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules, which are the reasons for dropping documents."""
        return (
            "empty", "dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac",
            *(f"top_{n}_gram" for n, _ in self.top_n_grams),
            *(f"duplicated_{n}_n_grams" for n, _ in self.dup_n_grams),
        )  # fmt: skip

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        """Return why each text is dropped, in any language."""
        return self.judge_in(None, text)

    def judge_in(self, language: str | None, text: pa.LargeStringArray) -> pa.StringArray:
        """Return why each text in a language (BCP 47) is dropped; null where it is kept."""
        from lit_llm.corpus.kernels.repetition_rules import judge_repetition
        from lit_llm.corpus.kernels.utf8 import buffers

        of = self._of(language) if self.by_language else self
        letters = letters_a_word(language) if self.by_sense else 1
        verdicts = np.zeros(len(text), np.uint8)
        limits = _limits(
            of.dup_para_frac, of.dup_para_char_frac, of.dup_line_frac, of.dup_line_char_frac,
            of.few_limit,
        )  # fmt: skip
        least = np.array(
            [self.min_repeated_lines, self.min_repeated_words * letters, self.min_line_width]
        )
        judge_repetition(
            *buffers(text), character_table(), limits, *_pairs(of.top_n_grams, letters),
            self.min_top_n_gram, *_pairs(of.dup_n_grams, letters), least, self.by_sense,
            letters == 1, verdicts,
        )  # fmt: skip
        return _rule_names(verdicts, of.rules)

    def _of(self, language: str | None) -> GopherRepetition:
        """Return the filter with the limits of a language; unchanged if the language has none."""
        own = limits_of(language)
        if own is None:
            return self
        top, dup = enumerate(own[1:4], start=2), enumerate(own[4:], start=5)
        return replace(self, dup_line_frac=own[0], top_n_grams=tuple(top), dup_n_grams=tuple(dup))

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped"; uses the column "language", if there is one and the settings need it."""
        if not (self.by_language or self.by_sense) or "language" not in table.column_names:
            return super().apply(table)
        text, reasons = texts(table["text"]), np.full(len(table), None, object)
        languages = np.array(table["language"].to_pylist(), object)
        for language in sorted(set(languages), key=str):
            rows = np.flatnonzero(languages == language)
            judged = self.judge_in(language, text.take(pa.array(rows)))
            reasons[rows] = judged.to_numpy(zero_copy_only=False)
        return self.drop(table, pa.array(reasons, pa.string()))


def _pairs(grams: tuple[tuple[int, float], ...], letters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams' lengths, with ``letters`` letters per word, and their limits."""
    lengths = np.array([n * letters for n, _ in grams], np.int64)
    return lengths, _limits(*(share for _, share in grams))


@dataclass(frozen=True)
class GopherQuality(Filter):
    """Drop documents that do not look like prose (Rae et al. 2021, arXiv 2112.11446, appendix A1).

    A document without words is dropped with any limits.

    Attributes:
        min_doc_words, max_doc_words: number of words, without those of symbols alone.
        min_avg_word_length, max_avg_word_length: their mean number of characters.
        max_symbol_word_ratio: maximum number of "#" per word, and of ellipses per word.
        max_bullet_lines_ratio, max_ellipsis_lines_ratio: maximum share of lines that begin with a
            bullet or end in an ellipsis.
        max_non_alpha_words_ratio: minimum share of words with a letter (the name is datatrove's).
        min_stop_words: minimum number of different ``stop_words`` in the text; case matters.
        by_sense: for the share of words with a letter, symbols alone are no word, and each letter
            of a script without spaces is one.
    """

    name: ClassVar[str] = "gopher_quality"
    rules: ClassVar[tuple[str, ...]] = (
        "gopher_short_doc", "gopher_long_doc", "gopher_below_avg_threshold",
        "gopher_above_avg_threshold", "gopher_too_many_hashes", "gopher_too_many_ellipsis",
        "gopher_too_many_bullets", "gopher_too_many_end_ellipsis",
        "gopher_below_alpha_threshold", "gopher_enough_stop_words",
    )  # fmt: skip
    min_doc_words: int | None = 50
    max_doc_words: int | None = 100000
    min_avg_word_length: float | None = 3
    max_avg_word_length: float | None = 10
    max_symbol_word_ratio: float | None = 0.1
    max_bullet_lines_ratio: float | None = 0.9
    max_ellipsis_lines_ratio: float | None = 0.3
    max_non_alpha_words_ratio: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: tuple[str, ...] = STOP_WORDS
    by_sense: bool = False

    def __post_init__(self) -> None:
        check_section(self, "gopher_quality")

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        from lit_llm.corpus.kernels.quality_rules import judge_gopher
        from lit_llm.corpus.kernels.utf8 import buffers

        verdicts = np.zeros(len(text), np.uint8)
        least = _limits(
            self.min_doc_words,
            self.min_avg_word_length,
            self.max_non_alpha_words_ratio,
            absent=-math.inf,
        )
        most = _limits(
            self.max_doc_words, self.max_avg_word_length, self.max_symbol_word_ratio,
            self.max_bullet_lines_ratio, self.max_ellipsis_lines_ratio,
        )  # fmt: skip
        stop_words = _hashes(self.stop_words)
        judge_gopher(
            *buffers(text),
            character_table(),
            least,
            most,
            stop_words,
            self.min_stop_words or 0,
            self.by_sense,
            verdicts,
        )
        return _rule_names(verdicts, self.rules)


@functools.cache
def _hashes(words: tuple[str, ...]) -> np.ndarray:
    """Return the hashes by which the kernel compares words."""
    from lit_llm.corpus.kernels.repetition_rules import hash_points

    points = [np.array(list(map(ord, word)), np.int32) for word in dict.fromkeys(words)]
    return np.array([hash_points(word, 0, len(word)) for word in points], np.uint64)


@dataclass(frozen=True)
class FineWebQuality(Filter):
    """Drop lists, menus and tables (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

    Only lines with more than white space count.

    Attributes:
        line_punct_thr: minimum share of lines that end in one of ``stop_chars``.
        line_punct_exclude_zero: whether a document in which no line does passes that rule.
        stop_chars: single characters. None: those that end a sentence in any script.
        short_line_thr: maximum share of lines of at most ``short_line_length`` characters.
        short_line_length: see ``short_line_thr``.
        char_duplicates_ratio: maximum share of the document's characters in lines that occur
            earlier in it.
        new_line_ratio: maximum number of newlines per word.
    """

    name: ClassVar[str] = "fineweb_quality"
    rules: ClassVar[tuple[str, ...]] = (
        "empty",
        "line_punct_ratio",
        "short_line_ratio",
        "char_dup_ratio",
        "list_ratio",
    )
    line_punct_thr: float | None = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: str | None = None
    short_line_thr: float | None = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float | None = 0.01
    new_line_ratio: float | None = 0.3

    def __post_init__(self) -> None:
        check_section(self, "fineweb")

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        from lit_llm.corpus.kernels.quality_rules import judge_fineweb
        from lit_llm.corpus.kernels.utf8 import buffers

        verdicts = np.zeros(len(text), np.uint8)
        stops = terminal_points() if self.stop_chars is None else set(map(ord, self.stop_chars))
        limits = _limits(
            0 if self.line_punct_thr is None else self.line_punct_thr,
            self.short_line_thr, self.short_line_length, self.char_duplicates_ratio,
            self.new_line_ratio,
        )  # fmt: skip
        judge_fineweb(
            *buffers(text), character_table(), np.array(sorted(stops), np.int32), limits,
            self.line_punct_exclude_zero, verdicts,
        )  # fmt: skip
        return _rule_names(verdicts, self.rules)


@dataclass(frozen=True)
class C4Quality(Block):
    """Drop lines, then documents, by the rules of C4.

    See Raffel et al. 2020, arXiv 1910.10683, section 2.2. Kept documents lose the dropped lines and
    have one newline between the others; dropped documents stay unchanged. FineWeb used C4's rules
    with ``filter_no_terminal_punct=False``.

    Attributes:
        remove_citations: remove "[12]", "[edit]" and "[citation needed]".
        filter_no_terminal_punct: drop lines that do not end in ``. ? ! " '``, or end in three full
            stops.
        min_num_sentences: minimum number of sentences in the remaining lines.
        min_words_per_line: lines with fewer words between white space are dropped.
        max_word_length: lines with a word of more characters are dropped.
        filter_lorem_ipsum: drop documents with "lorem ipsum".
        filter_javascript: drop lines with "javascript".
        filter_curly_bracket: drop documents with an opening curly bracket.
        filter_policy: drop lines with a phrase of notices on cookies and terms of use
            (`c4_rules.POLICY`).
    """

    name: ClassVar[str] = "c4_quality"
    rules: ClassVar[tuple[str, ...]] = ("lorem_ipsum", "curly_bracket", "too_few_sentences")
    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    min_num_sentences: int | None = 5
    min_words_per_line: int | None = 3
    max_word_length: int | None = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True

    def __post_init__(self) -> None:
        check_section(self, "c4")

    def clean(self, documents: Texts) -> tuple[pa.LargeStringArray, pa.StringArray]:
        """Return (texts, reasons): a reason is null where the text is kept."""
        from lit_llm.corpus.kernels.c4_rules import MARKS, MENTIONED, clean_c4
        from lit_llm.corpus.kernels.utf8 import buffers, from_buffers

        data, offsets = buffers(texts(documents))
        count = len(offsets) - 1
        # The kernel writes the kept lines one after the other, which never need more space.
        kept = np.empty(offsets[-1] - offsets[0], np.uint8)
        kept_offsets = np.empty(count + 1, np.int64)
        verdicts = np.zeros(count, np.uint8)
        switches = (
            self.remove_citations, self.filter_no_terminal_punct, self.filter_lorem_ipsum,
            self.filter_javascript, self.filter_curly_bracket, self.filter_policy,
        )  # fmt: skip
        limits = (
            _limits(self.min_num_sentences, self.min_words_per_line, absent=0),
            _limits(self.max_word_length),
        )
        clean_c4(
            data, offsets, character_table(), switches, np.concatenate(limits), MARKS, MENTIONED,
            kept, kept_offsets, verdicts,
        )  # fmt: skip
        return from_buffers(kept[: kept_offsets[-1]], kept_offsets), _rule_names(
            verdicts, self.rules
        )

    def apply(self, table: pa.Table) -> pa.Table:
        """Change "text" and fill "dropped"."""
        text, reasons = self.clean(table["text"])
        return self.drop(
            table.set_column(table.schema.get_field_index("text"), "text", text), reasons
        )
