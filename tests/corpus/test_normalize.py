"""Normalisation: planted mojibake comes back exactly, clean text stays, twice changes nothing."""

# ruff: noqa: RUF001 (letters of other scripts are the point)
from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth.planted import misread, mojibake

from lit_llm.corpus.block import documents
from lit_llm.corpus.filters.normalize import Normalize, undo_mojibake

PARAGRAPHS = [
    json.loads(line)
    for line in (Path(__file__).parent / "udhr.jsonl").read_text("utf-8").splitlines()
]


def test_mojibake_comes_back_exactly() -> None:
    restored, planted = {}, {}
    for text, bad, encoding, times in mojibake(PARAGRAPHS):
        key = encoding, times
        planted[key] = planted.get(key, 0) + 1
        restored[key] = restored.get(key, 0) + (undo_mojibake(bad) == text)
    assert sum(planted.values()) > 600
    assert sum(restored.values()) / sum(planted.values()) >= 0.8, (restored, planted)
    once = [key for key in planted if key[1] == 1]
    assert sum(restored[key] for key in once) / sum(planted[key] for key in once) >= 0.9, (
        restored,
        planted,
    )


def test_clean_text_stays() -> None:
    texts = [row["text"] for row in PARAGRAPHS]
    for block in (Normalize(), Normalize(code=True)):
        changed = sum(a != b for a, b in zip(texts, block.texts(texts), strict=True))
        # 420 paragraphs: one in a thousand is none.
        assert changed == 0, [
            (a, b) for a, b in zip(texts, block.texts(texts), strict=True) if a != b
        ]


TIDY = {
    "a\r\nb\rc\n": "a\nb\nc\n",
    "a\u2028b\x85c": "a\nb\nc",
    "a  \nb\t\u00a0\n\n\n\n\nc": "a\nb\n\nc",
    "\n\n a\n\n": " a\n",
    "x\x00\x07y\x9f\ttab": "xy\ttab",
    "\ufeffbom and so\u00adft": "bom and soft",
    "zero\u200bwidth\u200d": "zerowidth",
    "e\u0301te\u0301": "été",
    "page\fpage": "page\npage",
    "safe\u202etxt.exe": "safetxt.exe",
    "été, naïve — “quoted” … 12 €": "été, naïve — “quoted” … 12 €",
    "👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥": "👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥",
    "می\u200cخواهم": "می\u200cخواهم",
    "क्\u200dष श्री": "क्\u200dष श्री",
    "ภาษา\u200bไทย": "ภาษา\u200bไทย",
    "": "",
    "cafÃ© â€œyesâ€\x9d": "café “yes”",
    "good é line\nbad Ã© line": "good é line\nbad é line",
}


@pytest.mark.parametrize("text", TIDY)
def test_one_spelling(text: str) -> None:
    assert Normalize().texts([text, "plain"]) == [TIDY[text], "plain"]


def test_code_keeps_its_white_space() -> None:
    source = "def f():  \n\n\n\n\tpass\f\n\n"
    assert Normalize(code=True).texts([source.replace("\n", "\r\n") + "\x00"]) == [source]


PIECES = st.one_of(
    st.sampled_from([*TIDY, *(misread(row["text"][:40], "latin-1") for row in PARAGRAPHS[::40])]),
    st.text(st.characters(codec="utf-8"), max_size=10),
    st.text("a \n\r\t\x0b\x0c\x00\u200b\u200c\u200d\ufeffÃ©e\u0301\u00a0ăŁ", max_size=20),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=4), st.booleans())
def test_twice_changes_nothing_and_the_fast_path_is_no_other(texts: list[str], code: bool) -> None:
    block = Normalize(code=code)
    once = block.texts(texts)
    assert once == [block.normalize(text) for text in texts]
    assert block.texts(once) == once
    assert all(unicodedata.is_normalized("NFC", text) for text in once)
    assert Normalize(code=code)(documents(texts).slice(1))["text"].to_pylist() == once[1:]


def test_nothing_to_do_gives_the_same_buffers() -> None:
    text = pa.chunked_array([pa.array(["plain\n", "été\n"], pa.large_string())])
    done = Normalize()(documents(text))["text"].chunk(0)
    assert done.buffers()[2].address == text.chunk(0).buffers()[2].address
