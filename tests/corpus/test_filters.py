"""Each rule against a plain reference of it, on any text, and thresholds from both sides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents
from lit_llm.corpus.c4 import POLICY
from lit_llm.corpus.characters import SYMBOL, TERMINAL, character_table
from lit_llm.corpus.filters import STOP_WORDS, C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from lit_llm.corpus.words import words
from lit_llm.errors import UserError

TABLE = character_table()
SOME = ["the ", "be ", "a b ", "ab", "c. ", "c", "é\u0301", "…", "...", "# ", "- ", "• ", ".", "!", "\n", "\n\n", "\r\n",
        "\u2028", "\0", " ", "\u00a0", "🙂", "北京。", "[1]", "[edit]", "[citation needed]", "{", "JavaScript ", "Lorem ipsum ",
        "Use cooKies ", "x" * 1001, "One two three four. ", "Five six seven eight nine ten. ", '"', "'"]  # fmt: skip
any_text = st.lists(st.sampled_from(SOME), max_size=40).map("".join) | st.text(max_size=30)
any_texts = st.lists(any_text, max_size=6)


def is_symbol(word: str) -> bool:
    return all(TABLE[ord(c)] & SYMBOL for c in word)


def ends_sentence(character: str) -> bool:
    return bool(TABLE[ord(character)] & TERMINAL)


def seen_before(items: list[str]) -> list[str]:
    return [item for i, item in enumerate(items) if item in items[:i]]


def repetition(text: str, of: GopherRepetition) -> str | None:
    if not text:
        return "empty"
    for name, items in (("para", re.split("\n\n+", text.strip())), ("line", re.split("\n+", text))):
        again = seen_before(items)
        if len(again) / len(items) > getattr(of, f"dup_{name}_frac"):
            return f"dup_{name}_frac"
        if sum(map(len, again)) / len(text) > getattr(of, f"dup_{name}_char_frac"):
            return f"dup_{name}_char_frac"
    found = words(text)
    for n, most in of.top_n_grams:
        grams = Counter(" ".join(found[i : i + n]) for i in range(len(found) - n + 1))
        if grams and len(gram := max(grams, key=grams.__getitem__)) * grams[gram] / len(text) > most:
            return f"top_{n}_gram"
    for n, most in of.dup_n_grams:
        seen, inside, i = set(), 0, 0
        while i + n <= len(found):
            gram = "".join(found[i : i + n])
            inside += len(gram) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        if inside / len(text) > most:
            return f"duplicated_{n}_n_grams"
    return None


def gopher(text: str, of: GopherQuality) -> str | None:
    found = words(text)
    real = [word for word in found if not is_symbol(word)]
    if not found or len(real) < of.min_doc_words:
        return "gopher_short_doc"
    if len(real) > of.max_doc_words:
        return "gopher_long_doc"
    mean = sum(map(len, real)) / len(real) if real else float("nan")
    lines = text.splitlines()
    bullets = sum(line.lstrip()[:1] in ("•", "-") for line in lines if line.strip())
    trailing = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if mean < of.min_avg_word_length:
        return "gopher_below_avg_threshold"
    if mean > of.max_avg_word_length:
        return "gopher_above_avg_threshold"
    if text.count("#") / len(found) > of.max_symbol_word_ratio:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / len(found) > of.max_symbol_word_ratio:
        return "gopher_too_many_ellipsis"
    if bullets / len(lines) > of.max_bullet_lines_ratio:
        return "gopher_too_many_bullets"
    if trailing / len(lines) > of.max_ellipsis_lines_ratio:
        return "gopher_too_many_end_ellipsis"
    if sum(any(map(str.isalpha, word)) for word in found) / len(found) < of.max_non_alpha_words_ratio:
        return "gopher_below_alpha_threshold"
    return "gopher_enough_stop_words" if len({*found} & {*of.stop_words}) < of.min_stop_words else None


def fineweb(text: str, of: FineWebQuality) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    stopped = sum(ends_sentence(line[-1]) for line in lines)
    if stopped / len(lines) < of.line_punct_thr and (stopped or not of.line_punct_exclude_zero):
        return "line_punct_ratio"
    if sum(len(line) <= of.short_line_length for line in lines) / len(lines) > of.short_line_thr:
        return "short_line_ratio"
    if sum(map(len, seen_before(lines))) / len(text.replace("\n", "")) > of.char_duplicates_ratio:
        return "char_dup_ratio"
    return "list_ratio" if text.count("\n") / len(words(text)) > of.new_line_ratio else None


def sentence_count(line: str) -> int:
    kinds = "".join(
        "." if len(word) == 1 and ends_sentence(word) else "p" if is_punctuation(word) else "w" for word in words(line)
    )
    return len(re.findall(r"\.p*w", re.sub(r"[.p]*\.p*", ".", kinds))) + bool(kinds)


def is_punctuation(word: str) -> bool:
    import unicodedata

    return all(unicodedata.category(c)[0] == "P" for c in word)


def c4(text: str, of: C4Quality) -> tuple[str, str | None]:
    kept, count = [], 0
    for line in map(str.strip, text.splitlines()):
        if max(map(len, line.split()), default=0) > of.max_word_length:
            continue
        few = len(line.split()) < of.min_words_per_line
        if of.remove_citations:
            line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if few or (of.filter_no_terminal_punct and (line[-1:] not in tuple(".?!\"'") or line.endswith("..."))):
            continue
        small = line.lower()
        if of.filter_lorem_ipsum and "lorem ipsum" in small:
            return text, "lorem_ipsum"
        if of.filter_javascript and "javascript" in small:
            continue
        if of.filter_curly_bracket and "{" in line:
            return text, "curly_bracket"
        if of.filter_policy and any(phrase in small for phrase in POLICY):
            continue
        count += sentence_count(line)
        kept.append(line)
    return (text, "too_few_sentences") if count < of.min_num_sentences else ("\n".join(kept).strip(), None)


REPETITION = (GopherRepetition(), GopherRepetition(0.5, 0.6, 0.4, 0.5, ((1, 0.5), (3, 0.4)), ((2, 0.3), (5, 0.2))))
QUALITY = (
    GopherQuality(min_doc_words=3, min_avg_word_length=2),
    GopherQuality(0, 30, 1, 4, 0.2, 0.3, 0.2, 0.5, 1, ("be", "c", "北京", "c")),
)
FINEWEB = (FineWebQuality(), FineWebQuality(0.4, True, None, 0.5, 8, 0.2, 0.6))
CLEAN = (
    C4Quality(),
    C4Quality(min_num_sentences=1, min_words_per_line=0, max_word_length=20),
    C4Quality(False, False, 2, 1, 1000, False, False, False, False),
)


@settings(deadline=None, max_examples=150)
@given(any_texts)
def test_rules_equal_their_references(given: list[str]) -> None:
    for of in REPETITION:
        assert of.reasons(given) == [repetition(text, of) for text in given]
    for of in QUALITY:
        assert of.reasons(given) == [gopher(text, of) for text in given]
    for of in FINEWEB:
        assert of.reasons(given) == [fineweb(text, of) for text in given]
    for of in CLEAN:
        texts, reasons = of.clean(given)
        assert list(zip(texts.to_pylist(), reasons.to_pylist(), strict=True)) == [c4(text, of) for text in given]


def prose(*, words: int = 60) -> str:
    return " ".join(f"the {i}th of many" for i in range(words // 4))
