"""Each rule against a plain reference of it, on any text, and thresholds from both sides."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents
from lit_llm.corpus.commands.config_parser import parse_build
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.filters.quality import (
    C4Quality,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
)
from lit_llm.corpus.filters.repetition_limits import language_limits, letters_a_word, limits_of
from lit_llm.corpus.kernels.c4_rules import POLICY
from lit_llm.corpus.kernels.characters import SPACE, SYMBOL, TERMINAL, UNSPACED, character_table
from lit_llm.corpus.kernels.words import words
from lit_llm.errors import UserError

TABLE = character_table()
UDHR = Path(__file__).with_name("udhr.jsonl")
SOME = ["the ", "be ", "a b ", "ab", "c. ", "c", "é\u0301", "…", "...", "# ", "- ", "• ", ".", "!",
    "\n", "\n\n",
        "\r\n", "\u2028", "\0", " ", "\u00a0", "🙂", "北京。", "[1]", "[edit]", "[citation needed]",
        "{", "JavaScript ",
        "Lorem ipsum ", "Use cooKies ", "x" * 1001, "One two three four. ", "Five six seven eight "
                                                                            "nine. ",
        '"', "'"]  # fmt: skip
any_text = st.lists(st.sampled_from(SOME), max_size=40).map("".join) | st.text(max_size=30)
any_texts = st.lists(any_text, max_size=6)


def is_symbol(word: str) -> bool:
    return all(TABLE[ord(c)] & SYMBOL for c in word)


def ends_sentence(character: str) -> bool:
    return bool(TABLE[ord(character)] & TERMINAL)


def seen_before(items: list[str]) -> list[str]:
    return [item for i, item in enumerate(items) if item in items[:i]]


def says_something(item: str) -> bool:
    return any(not TABLE[ord(c)] & (SYMBOL | SPACE) for c in item)


def width(item: str) -> int:
    return sum(2 if TABLE[ord(c)] & UNSPACED else 1 for c in item)


def sensible_words(text: str) -> list[str]:
    found = []
    for word in words(text):
        if not is_symbol(word):
            cut = "".join(f"\0{c}\0" if TABLE[ord(c)] & UNSPACED else c for c in word)
            found += [part for part in cut.split("\0") if part] if "\0" not in word else [word]
    return found


def repetition(text: str, of: GopherRepetition, letters: int = 1) -> str | None:
    if not text:
        return "empty"
    for name, items in (("para", re.split("\n\n+", text.strip())), ("line", re.split("\n+", text))):
        if of.by_sense:
            items = [item for item in items if says_something(item)]
        again = seen_before(items)
        few = len(again) < of.min_repeated_lines
        counted = items
        if of.min_line_width and name == "line":
            counted = [
                item for item in items if says_something(item) and width(item) >= of.min_line_width
            ]
        repeated = len(seen_before(counted))
        enough = counted and repeated >= of.min_repeated_lines
        if enough and repeated / len(counted) > getattr(of, f"dup_{name}_frac"):
            return f"dup_{name}_frac"
        most = getattr(of, f"dup_{name}_char_frac")
        if sum(map(len, again)) / len(text) > (max(most, of.few_limit) if few else most):
            return f"dup_{name}_char_frac"
    found = sensible_words(text) if of.by_sense else words(text)
    for n, most in of.top_n_grams:
        many, between = n * letters, " " if letters == 1 else ""
        grams = Counter(tuple(found[i : i + many]) for i in range(len(found) - many + 1))
        gram = max(grams, key=grams.__getitem__, default=())
        size = len(between.join(gram)) * grams[gram]
        if grams[gram] >= of.min_top_n_gram and size / len(text) > most:
            return f"top_{n}_gram"
    for n, most in of.dup_n_grams:
        many = n * letters
        seen, inside, again_words, i = set(), 0, 0, 0
        while i + many <= len(found):
            gram = "".join(found[i : i + many])
            inside += len(gram) if gram in seen else 0
            again_words += many if gram in seen else 0
            i += many if gram in seen else 1
            seen.add(gram)
        few = again_words < of.min_repeated_words * letters
        if inside / len(text) > (max(most, of.few_limit) if few else most):
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
    if of.by_sense:
        found = sensible_words(text)
    lettered = sum(any(map(str.isalpha, word)) for word in found)
    if lettered / max(1, len(found)) < of.max_non_alpha_words_ratio:
        return "gopher_below_alpha_threshold"
    return (
        "gopher_enough_stop_words" if len({*found} & {*of.stop_words}) < of.min_stop_words else None
    )


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
    count, ended = 0, True
    for word in words(line):
        if len(word) == 1 and ends_sentence(word):
            count, ended = max(count, 1), True
        elif count == 0 or (ended and any(unicodedata.category(c)[0] != "P" for c in word)):
            count, ended = count + 1, False
    return count


def c4(text: str, of: C4Quality) -> tuple[str, str | None]:
    kept, count = [], 0
    for line in map(str.strip, text.splitlines()):
        if max(map(len, line.split()), default=0) > of.max_word_length:
            continue
        few = len(line.split()) < of.min_words_per_line
        if of.remove_citations:
            line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if few or (
            of.filter_no_terminal_punct
            and (line[-1:] not in tuple(".?!\"'") or line.endswith("..."))
        ):
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
    return (
        (text, "too_few_sentences")
        if count < of.min_num_sentences
        else ("\n".join(kept).strip(), None)
    )


REPETITION = (
    GopherRepetition(),
    GopherRepetition(0.5, 0.6, 0.4, 0.5, ((1, 0.5), (3, 0.4)), ((2, 0.3), (5, 0.2)), 2),
    GopherRepetition(
        0.3, 0.3, 0.3, 0.2, ((1, 0.2), (2, 0.2)), ((2, 0.2), (3, 0.1)), 3, min_repeated_lines=2,
        min_repeated_words=6, few_limit=0.4, min_line_width=4, by_sense=True,
    ),
)  # fmt: skip
QUALITY = (
    GopherQuality(min_doc_words=3, min_avg_word_length=2),
    GopherQuality(0, 30, 1, 4, 0.2, 0.3, 0.2, 0.5, 1, ("be", "c", "北京", "c")),
    GopherQuality(0, 30, 0, 9, 0.9, 0.9, 0.9, 0.6, 0, by_sense=True),
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
    of, array = REPETITION[2], pa.array(given, pa.large_string())
    assert of.judge_in("zh", array).to_pylist() == [repetition(text, of, 2) for text in given]
    for of in QUALITY:
        assert of.reasons(given) == [gopher(text, of) for text in given]
    for of in FINEWEB:
        assert of.reasons(given) == [fineweb(text, of) for text in given]
    for of in CLEAN:
        texts, reasons = of.clean(given)
        assert list(zip(texts.to_pylist(), reasons.to_pylist(), strict=True)) == [
            c4(text, of) for text in given
        ]


def prose(*, words: int = 60) -> str:
    return " ".join(f"the {i}th of many" for i in range(words // 4))


LINES = [f"Line number {i} has no other like it." for i in range(10)]
BULLET, NORMAL, TRAILING = (
    "\n• lines that have such bullets",
    "some word\n",
    "long line of words that is not over…\n",
)
PIECES = GopherRepetition(top_n_grams=(), dup_n_grams=())
GOPHER = GopherQuality(min_doc_words=1, min_stop_words=0)


@pytest.mark.parametrize(
    ("block", "kept", "dropped", "reason"),
    [
        (GopherRepetition(), "a", "", "empty"),
        (PIECES, "\n\n".join(LINES[:7] + ["a"] * 4), "\n\n".join(LINES[:6] + ["a"] * 5),
            "dup_para_frac"),
        (PIECES, "\n\n".join(LINES + LINES[:2]), "\n\n".join(LINES + LINES[:3]),
            "dup_para_char_frac"),
        (PIECES, "\n".join(LINES[:7] + ["a"] * 4), "\n".join(LINES[:6] + ["a"] * 5),
            "dup_line_frac"),
        (PIECES, "\n".join(LINES + LINES[:2]), "\n".join(LINES + LINES[:3]), "dup_line_char_frac"),
        (GopherQuality(), prose(words=100), prose(words=40), "gopher_short_doc"),
        (GopherQuality(), prose(words=100_000), prose(words=100_004), "gopher_long_doc"),
        (GOPHER, "abc", "ab", "gopher_below_avg_threshold"),
        (GOPHER, "a" * 10, "a" * 11, "gopher_above_avg_threshold"),
        (GOPHER, "# " + "word " * 9, "# " + "word " * 8, "gopher_too_many_hashes"),
        (GOPHER, "... " + "word " * 9, "... " + "word " * 8, "gopher_too_many_ellipsis"),
        (GOPHER, LINES[0] + 9 * BULLET, LINES[0] + 10 * BULLET, "gopher_too_many_bullets"),
        (GOPHER, 7 * NORMAL + 3 * TRAILING, 6 * NORMAL + 3 * TRAILING,
            "gopher_too_many_end_ellipsis"),
        (GOPHER, "word " * 8 + "1234 " * 2, "word " * 7 + "1234 " * 2,
            "gopher_below_alpha_threshold"),
        (GopherQuality(min_doc_words=1), "the words with", "the words the",
            "gopher_enough_stop_words"),
        (FineWebQuality(), "x" * 31 + ".", "x" * 32, "line_punct_ratio"),
        (FineWebQuality(), "x" * 30 + ".", "x" * 29 + ".", "short_line_ratio"),
        (FineWebQuality(), "\n".join(LINES), "\n".join([*LINES, LINES[0]]), "char_dup_ratio"),
        (FineWebQuality(), "\n\n".join(LINES), "\n\n\n\n".join(LINES), "list_ratio"),
    ],
)  # fmt: skip
def test_thresholds(block, kept: str, dropped: str, reason: str) -> None:
    assert block.reasons([kept, dropped]) == [None, reason]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_most_frequent_n_gram_of_each_length(n: int) -> None:
    text = " ".join(f"{'abcd'[:n].replace('', ' ').strip()} other{i}" for i in range(4))
    share = (2 * n - 1) * 4 / len(text)
    for most, reason in ((share, None), (share - 1e-9, f"top_{n}_gram")):
        assert GopherRepetition(top_n_grams=((n, most),), dup_n_grams=()).reasons([text]) == [
            reason
        ]


def test_words_that_stand_there_once_are_no_repetition_for_all() -> None:
    twice, once = "one two one two three", "one two three four five"
    assert GopherRepetition().reasons([twice, once]) == ["top_2_gram"] * 2
    assert GopherRepetition(min_top_n_gram=2).reasons([twice, once]) == ["top_2_gram", None]


def test_the_default_keeps_paragraphs_of_any_language() -> None:
    rows = [json.loads(line) for line in UDHR.read_text(encoding="utf-8").splitlines()]
    config = CorpusConfig()
    for block in (config.gopher_repetition, config.gopher_quality):
        reasons = block.reasons([row["text"] for row in rows])
        dropped = [
            (row["language"], reason) for row, reason in zip(rows, reasons, strict=True) if reason
        ]
        assert len(dropped) < 0.02 * len(rows), dropped


def test_limits_are_those_of_the_language() -> None:
    """FineWeb-2 allows Portuguese pages 0.371 of a most frequent pair of words, Spanish ones
    0.156."""
    words_once = [f"palavra{i}" for i in range(12)]
    text = " ".join(f"aaaa bbbb {word} x{word}" for word in words_once)
    block = GopherRepetition(dup_n_grams=((5, 1.0),), top_n_grams=((2, 0.2),), by_language=True)
    table = documents([text] * 4, language=["pt", "es", None, "zh-Hant"])
    assert 0.256 < len("aaaa bbbb") * 12 / len(text) < 0.371
    dropped = "gopher_repetition: top_2_gram"
    assert block(table)["dropped"].to_pylist() == [None, dropped, dropped, dropped]
    assert limits_of("zh-Hant") == limits_of("zh") and limits_of("en") is None
    assert len(language_limits()) == 65
    assert all(0 < share < 0.6 for row in language_limits().values() for share in row)
    assert [letters_a_word(tag) for tag in ("zh-Hant", "th", "de", None)] == [2, 4, 1, 1]


def test_the_web_preset_has_the_limits_of_the_papers() -> None:
    config, _ = parse_build(["--config", "corpus/web", "--input", __file__, "--output", "x"])
    assert config.gopher_repetition == GopherRepetition()
    assert config.gopher_quality == GopherQuality(max_non_alpha_words_ratio=0.5)


@pytest.mark.parametrize("n", [5, 10])
def test_repeated_n_grams_of_each_length(n: int) -> None:
    words_once = [f"w{i}" for i in range(40)]
    text = " ".join([*words_once, *words_once[:n]])
    share = len("".join(words_once[:n])) / len(text)
    for most, reason in ((share, None), (share - 1e-9, f"duplicated_{n}_n_grams")):
        assert GopherRepetition(top_n_grams=(), dup_n_grams=((n, most),)).reasons([text]) == [
            reason
        ]


def test_none_switches_a_rule_off() -> None:
    off = (
        GopherRepetition(None, None, None, None, (), (), few_limit=None),
        GopherQuality(*[None] * 9),
        FineWebQuality(None, short_line_thr=None, char_duplicates_ratio=None, new_line_ratio=None),
    )
    for block in off:
        assert block.reasons(["a\n" * 50, "#\n- ...\n" * 50]) == [None, None]
    nothing = C4Quality(False, False, None, None, None, False, False, False, False)
    text = ["{\n" + "x" * 2000 + "\n[1] lorem ipsum javascript\nterms of use"]
    assert [column.to_pylist() for column in nothing.clean(text)] == [text, [None]]
    with pytest.raises(UserError, match="n-gram"):
        GopherRepetition(dup_n_grams=((0, 0.1),))
    for name in ("min_top_n_gram", "min_repeated_lines", "min_repeated_words"):
        with pytest.raises(UserError, match=f"gopher_repetition.{name}=0: must be from 1"):
            GopherRepetition(**{name: 0})
    with pytest.raises(UserError, match=r"gopher_repetition\.min_line_width=-1: must be from 0"):
        GopherRepetition(min_line_width=-1)


def test_c4_edits_kept_documents_and_leaves_dropped_ones() -> None:
    lines = ["  First line[1] stays here.[citation needed] ", "no end", "Too short.",
        "Enable JavaScript to see this.",
             "See our Privacy Policy for more.", "Last line is this one!",
             "x" * 1001 + " is too long."]  # fmt: skip
    table = documents(
        ["\r\n".join(lines), "One line alone.", "Lorem Ipsum is here.", "A { is in here."]
    )
    done = C4Quality(min_num_sentences=2)(table)
    assert done["text"].to_pylist() == [
        "First line stays here.\nLast line is this one!",
        *table["text"].to_pylist()[1:],
    ]
    assert done["dropped"].to_pylist() == [
        None, "c4_quality: too_few_sentences", "c4_quality: "
                                               "lorem_ipsum", "c4_quality: curly_bracket",
    ]  # fmt: skip


def test_stop_characters_may_be_chosen() -> None:
    block = FineWebQuality(stop_chars=";", short_line_thr=1)
    assert block.reasons(["This ends so;", "This ends so."]) == [None, "line_punct_ratio"]


def test_three_lines_of_use() -> None:
    assert GopherQuality().reasons(["Too short.", None]) == ["gopher_short_doc", "gopher_short_doc"]
    done = GopherQuality(min_doc_words=3)(documents(["the words that count", "no"]))
    assert done["dropped"].to_pylist() == [None, "gopher_quality: gopher_short_doc"]


@settings(deadline=None, max_examples=30)
@given(any_texts, st.integers(0, 3), st.integers(0, 3))
def test_batches_and_slices_change_nothing(given: list[str], before: int, after: int) -> None:
    array = pa.array(["skipped"] * before + given + ["skipped"] * after, pa.large_string())[
        before : before + len(given)
    ]
    for block in (GopherRepetition(), QUALITY[0], FINEWEB[1]):
        assert block.judge(array).to_pylist() == [
            reason for text in given for reason in block.reasons([text])
        ]
    whole = C4Quality(min_num_sentences=1).clean(array)
    parts = [C4Quality(min_num_sentences=1).clean([text]) for text in given]
    for column in range(2):
        assert whole[column].to_pylist() == [
            value for part in parts for value in part[column].to_pylist()
        ]


def test_many_tiny_documents_after_a_large_one() -> None:
    tiny = [
        text
        for i in range(3000)
        for text in ("", "a", f"{i}", "a\n\n" * (i % 9), "one two " * (i % 7))
    ]
    large = " ".join(map(str, range(30_000)))
    for block in (REPETITION[1], FINEWEB[1]):
        alone = {text: block.reasons([text])[0] for text in {*tiny, large}}
        assert block.reasons([large, *tiny, large]) == [
            alone[text] for text in (large, *tiny, large)
        ]


@pytest.mark.slow
def test_kernels_stay_in_bounds_on_any_bytes(tmp_path: Path) -> None:
    """With bounds checks, and a cache of their own: numba does not tell kernels compiled with and
    without apart."""
    fuzzing = "import test_filters; test_filters.fuzz()"
    done = subprocess.run(
        [sys.executable, "-c", fuzzing],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1",
             "LIT_LLM_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1", done.stderr


def fuzz() -> None:
    """Run every kernel on random bytes and on pieces of `SOME`, whole and cut in the middle of
    characters."""
    import numba

    from lit_llm.corpus.kernels.utf8 import from_buffers

    rng = np.random.default_rng(0)
    parts = [part.encode() for part in SOME]
    for _ in range(200):
        pieces = [parts[i] for i in rng.integers(len(parts), size=rng.integers(1, 60))]
        data = np.frombuffer(
            b"".join(pieces) + rng.integers(0, 256, rng.integers(40), np.uint8).tobytes(), np.uint8
        )
        cuts = np.sort(rng.integers(0, len(data) + 1, rng.integers(1, 12)))
        text = from_buffers(data, cuts.astype(np.int64))
        for block in (*REPETITION, *QUALITY, *FINEWEB):
            assert len(block.judge(text)) == len(cuts) - 1
        for block in CLEAN:
            cleaned, reasons = block.clean(text)
            ends = np.frombuffer(cleaned.buffers()[1], np.int64)
            assert (
                ends[-1] <= cuts[-1] - cuts[0]
                and all(a <= b for a, b in pairwise(ends))
                and len(reasons) == len(text)
            )
    print(numba.config.BOUNDSCHECK)
