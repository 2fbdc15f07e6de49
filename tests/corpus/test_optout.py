"""Opt-outs: domains with what is below them, addresses, files of them, flags of robots and
text-and-data mining."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents
from lit_llm.corpus.filters.optout import OptOut
from lit_llm.errors import UserError

URLS = {
    "https://example.org": "opt_out: domain example.org",
    "http://www.Example.org:8080/a?b#c": "opt_out: domain example.org",
    "https://deep.sub.example.org/x": "opt_out: domain example.org",
    "example.org/x": "opt_out: domain example.org",
    "https://notexample.org/": None,
    "https://example.org.evil.net/": None,
    "https://news.net/archive/2020/a.html": "opt_out: address news.net/archive",
    "https://news.net/archive": "opt_out: address news.net/archive",
    "https://news.net/archives": None,
    "https://news.net/": None,
    "https://bücher.de/": "opt_out: domain xn--bcher-kva.de",
    "https://user@blocked.co.uk/": "opt_out: domain blocked.co.uk",
    "<https://example.org/a>": "opt_out: domain example.org",
    "HTTPS://EXAMPLE.ORG.:443/": "opt_out: domain example.org",
    "https://XN--BCHER-KVA.de/": "opt_out: domain xn--bcher-kva.de",
    "https://BU\u0308CHER.de/": "opt_out: domain xn--bcher-kva.de",
    "https://b%C3%BCcher.de/": "opt_out: domain xn--bcher-kva.de",
    "https://b\u00fccher\u3002de/": "opt_out: domain xn--bcher-kva.de",
    "https://xn--strae-oqa.de/": "opt_out: domain xn--strae-oqa.de",
    "https://strasse.de/": None,
    "https://news.net/%61rchive/x": "opt_out: address news.net/archive",
    "https://a_b.blocked.co.uk/": "opt_out: domain blocked.co.uk",
    "https://ann:p@ss@example.org/": "opt_out: domain example.org",
    "https:/example.org/": "opt_out: domain example.org",
    "https:\\\\example.org\\a": "opt_out: domain example.org",
    "https://exam\nple.org/a": "opt_out: domain example.org",
    "example.org:8080/a": "opt_out: domain example.org",
    "view-source:https://example.org/a": "opt_out: domain example.org",
    '"https://example.org/a"': "opt_out: domain example.org",
    "mailto:ann@example.org": None,
    "https://evil.com\\@example.org/": None,
    "https://news.net/x/../archive/./y": "opt_out: address news.net/archive",
    "https://news.net//archive//y": "opt_out: address news.net/archive",
    "https://news.net/archive/..": None,
    "https://photos.net/a": "opt_out: address photos.net/a",
    "https://photos.net/a/b": "opt_out: address photos.net/a",
    "https://photos.net/all/b": "opt_out: address photos.net/all",
    "https://forum.net/?id=5": "opt_out: address forum.net?id=5",
    "https://forum.net/?id=6": None,
    "https://forum.net/t?id=5": "opt_out: address forum.net/t?id=5",
    "https://forum.net/t?id=55": None,
    "http://[2001:DB8:0:0:0:0:0:1]:80/": "opt_out: domain [2001:db8::1]",
    "https://[::1]:80/": None,
    "": None,
    "not a url": None,
}
ADDRESSES = st.text(st.characters(codec="utf-8"), max_size=30) | st.from_regex(
    r"https?://[a-z.]{1,12}/\w*", fullmatch=True
)
ENTRIES = (
    "example.org",
    "https://news.net/archive",
    "*.bücher.de",
    "www.blocked.co.uk",
    "straße.de",
    "photos.net/a/",
    "photos.net/all/*",
    "https://forum.net/?id=5",
    "forum.net/t?id=5",
    "[2001:db8::1]",
)


def test_by_address() -> None:
    table = OptOut(entries=ENTRIES)(documents(["x"] * (len(URLS) + 1), url=[*URLS, None]))
    assert dict(zip([*URLS, None], table["dropped"].to_pylist(), strict=True)) == {
        **URLS,
        None: None,
    }


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "domains.txt"
    file.write_text("# robots\na.com  # first\n\nb.com\n")
    table = documents(["x"] * 3, url=["https://a.com/1", "https://b.com/2", "https://c.com/3"])
    assert OptOut(files=(str(file),))(table)["dropped"].null_count == 1
    file.write_text("c.com\n")
    os.utime(file, ns=(1, 1))
    assert OptOut(files=(str(file),))(table)["dropped"].to_pylist() == [
        None,
        None,
        "opt_out: domain c.com",
    ]


@pytest.mark.parametrize(
    "entry", ["example.org,", "||example.org^", "*example.org", "example..org", "a.org/*.html"]
)
def test_an_entry_that_would_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(UserError, match="entry 1"):
        OptOut(entries=(entry,))


def test_flags() -> None:
    table = documents(
        ["x"] * 6,
        robots=[
            "index, follow",
            "NOAI, noimageai",
            "googlebot: noindex",
            None,
            "none",
            "nonetheless",
        ],
        tdm_reservation=[0, 0, 0, 1, None, 0],
    )
    dropped = OptOut()(table)["dropped"].to_pylist()
    assert dropped == [
        None,
        "opt_out: robots",
        "opt_out: robots",
        "opt_out: tdm_reservation",
        "opt_out: robots",
        None,
    ]
    assert OptOut(refusals=())(table)["dropped"].null_count == 5
    header = documents(["x"] * 3, headers=["tdm-reservation: 1", "tdm-reservation: 0", "a"])
    assert OptOut(flags=("headers",))(header)["dropped"].to_pylist() == [
        "opt_out: headers",
        None,
        None,
    ]
    assert OptOut(flags=("no",))(documents(["x"], no=[True]))["dropped"].to_pylist() == [
        "opt_out: no"
    ]


@settings(deadline=None)
@given(st.lists(st.none() | ADDRESSES))
def test_any_address_is_read(urls: list[str | None]) -> None:
    done = OptOut(entries=ENTRIES)(documents(["x"] * len(urls), url=pa.array(urls, pa.string())))
    assert done.num_rows == len(urls)


def test_mistakes_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="entry 1, 'nodomain'"):
        OptOut(entries=("nodomain",))
    with pytest.raises(UserError, match="cannot be read"):
        OptOut(files=(str(tmp_path / "none.txt"),))
