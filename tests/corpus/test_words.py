"""The kernels under the filters: text to code points and back, what a character is, words and
sentences."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

import lit_llm.corpus
from lit_llm.corpus.kernels import characters
from lit_llm.corpus.kernels.jit import kernel_files
from lit_llm.corpus.kernels.utf8 import buffers, decode, encode, from_buffers
from lit_llm.corpus.kernels.words import sentences, split, words

anything = st.text(st.characters(codec="utf-8")) | st.text(
    "ab1 .,-'’:/\n…é!",  # noqa: RUF001
    max_size=40,
)


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@pytest.mark.parametrize("around", [b"", b"\xf0\x9f\x98"])
def test_code_points_are_pythons_and_invalid_bytes_come_back(around: bytes, data: bytes) -> None:
    data = data + around
    points, back = np.empty(len(data), np.int32), np.empty(len(data), np.uint8)
    count = decode(np.frombuffer(data, np.uint8), 0, len(data), points)
    assert points[:count].tolist() == [
        ord(character) for character in data.decode("utf-8", "surrogateescape")
    ]
    assert back[: encode(points, 0, count, back, 0)].tobytes() == data


def test_arrays_are_read_where_they_lie() -> None:
    array = pa.array(["skipped", "é", "", "x" * 9, "skipped"], pa.large_string())[1:4]
    data, offsets = buffers(array)
    assert data.ctypes.data == array.buffers()[2].address
    assert bytes(data[offsets[0] : offsets[1]]).decode() == "é" and len(offsets) == 4
    assert from_buffers(data, offsets).equals(array)
    for empty in (pa.array([], pa.large_string()), array[:0]):
        assert from_buffers(*buffers(empty)).equals(empty)


@pytest.mark.parametrize(
    ("bit", "has"),
    [
        ("SPACE", str.isspace),
        ("LETTER", str.isalpha),
        ("DECIMAL", str.isdecimal),
        ("LINE_END", lambda c: len(f"a{c}b".splitlines()) == 2),
        ("PUNCTUATION", lambda c: unicodedata.category(c)[0] == "P"),
        ("TERMINAL", lambda c: ord(c) in characters.terminal_points()),
    ],
)
def test_bits_of_characters(bit: str, has) -> None:
    found = np.flatnonzero(characters.character_table() & getattr(characters, bit)).tolist()
    assert found == [point for point in range(sys.maxunicode + 1) if has(chr(point))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('It\'s (not) a "test", is it?', 'It \'s ( not ) a " test " , is it ?'),
        (
            "I don't, we’ve they'll I'm CAN'T he'd you're",  # noqa: RUF001
            "I do n't , we ’ve they 'll I 'm CA N'T he 'd you 're",  # noqa: RUF001
        ),
        ("n't 's a's 1's", "n't ' s a 's 1's"),
        ("J. Doe, the U.S. and e.g. this. Yes.", "J. Doe , the U.S. and e.g. this . Yes ."),
        ("Wait... what?! ....so… a..b", "Wait ... what ? ! .... so … a .. b"),
        ("well-known 3-4 3-d -x --y x- 2*3 a*b", "well - known 3 - 4 3 - d -x --y x- 2 * 3 a*b"),
        (
            "end.Start a.b 3.14 a,b 1,000 key:value 10:30",
            "end . Start a.b 3.14 a , b 1,000 key : value 10:30",
        ),
        ("and/or 1/2 <b>x</b> a@b.c", "and / or 1/2 < b > x</b > a@b.c"),
        ("http://a.b/c-d:e www.a-b.c, c:/x", "http://a.b/c-d:e www.a-b.c , c:/x"),
        ("€5 $10 50% #tag snake_case f(x)", "€ 5 $ 10 50 % # tag snake_case f(x )"),
        (
            "naïve e\u0301te\u0301 北京大学。 🙂x🙂🙂",
            "naïve e\u0301te\u0301 北京大学 。 🙂 x 🙂 🙂",
        ),
        ("\u00a0a\u2003b\x1cc\x00d\r\n", "a b c\x00d"),
        ("- | ' . .. ...", "- | ' . .. ..."),
        ("", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == expected.split(" " if expected else None)


@settings(deadline=None)
@given(anything)
def test_words_are_all_of_the_text_but_its_white_space(text: str) -> None:
    found = words(text)
    assert "".join(found) == "".join(text.split())
    assert all(found)
    for chunk in text.split():
        assert words(f" {chunk}\t") == words(chunk)
    assert found == [word for chunk in text.split() for word in words(chunk)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no end", 1),
        ("One. Two! Three?", 3),
        ('He said "Stop." Then he left.', 2),
        ("Really?! (Yes.) No... well", 3),
        ("Mr. Doe lives at 3.14 example.com.", 2),
        ("。北京 。北京。", 3),
        ("...", 1),
        ("! !", 1),
    ],
)
def test_sentences(text: str, count: int) -> None:
    points = np.array(list(map(ord, text)), np.int32)
    starts, ends = np.empty((2, len(text)), np.int64)
    table = characters.character_table()
    assert (
        sentences(points, starts, ends, split(points, 0, len(text), table, starts, ends), table)
        == count
    )


def test_nothing_is_said_of_the_last_code_points() -> None:
    categories = {
        unicodedata.category(chr(point))
        for point in range(characters._ASSIGNED, sys.maxunicode + 1)
    }
    assert categories <= {"Mn", "Cf", "Co", "Cn"}
    assert len(characters.character_table()) == sys.maxunicode + 1


def test_kernels_are_kept_in_the_cache_folder_or_nowhere(tmp_path: Path) -> None:
    program = (
        "from lit_llm.corpus.kernels.jit import cache_folder, kernel\n"
        "from lit_llm.corpus.kernels.words import _dots\n"
        "import numba, numpy\n"
        "assert _dots(numpy.array([46, 46], numpy.int32), 0, 2) == 2\n"
        "print(cache_folder(), sum(_dots.stats.cache_hits.values()), numba.config.CACHE_DIR)"
    )

    def run(cache: Path) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "LIT_LLM_CACHE": str(cache), "NUMBA_CACHE_DIR": "theirs"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    folder, hits, theirs = run(tmp_path)
    assert Path(folder).parent == tmp_path / "kernels" and (hits, theirs) == ("0", "theirs")
    assert run(tmp_path) == [folder, "1", "theirs"]
    (tmp_path / "file").touch()
    assert run(tmp_path / "file") == ["None", "0", "theirs"]


def test_a_change_to_what_kernels_are_made_of_makes_them_anew_and_no_other_change() -> None:
    """The cache's name is made of the folder's files: kernels lie in them, and import no others."""
    kernels: list[Dispatcher] = []
    for module in pkgutil.walk_packages(lit_llm.corpus.__path__, "lit_llm.corpus."):
        found = vars(importlib.import_module(module.name)).values()
        kernels += [one for one in found if isinstance(one, Dispatcher)]
    files = {Path(one.py_func.__code__.co_filename) for one in kernels}
    assert files and files <= set(kernel_files())
    for file in kernel_files():
        imported = re.findall(r"from (lit_llm\S*) import", file.read_text(encoding="utf-8"))
        allowed = ("lit_llm.io.cache", "lit_llm.corpus.kernels")
        assert all(name.startswith(allowed) for name in imported), file
