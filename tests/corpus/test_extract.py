"""HTML to main text: what stays, what goes, and that nothing a page holds can stop or stall it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents
from lit_llm.corpus.reading.html_text import ExtractHTML, main_text, robots

PAGE = """<!DOCTYPE html><html><head><title>The title</title><style>p {}</style>
<meta charset="utf-8"></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/news">News</a></ul></nav>
<main><article><div><h1>Heading</h1>
<p>Fish &amp; chips cost &pound;5 &lt; &#8364;7, says
<a href="http://link.example/x">a site</a>.</p>
<pre><code>def f():
    return 1</code></pre>
<ul><li>first</li><li>second</li></ul>
<table><tr><td>cell<td><table><tr><td>inner</table></table>
<img src="x" alt="alternative"><script>alert(1)</script><!-- comment -->
</div></article></main><footer>Footer</footer></body></html>"""


def test_what_a_reader_came_for() -> None:
    text = main_text(PAGE)
    assert "Fish & chips cost £5 < €7, says a site." in text
    assert "def f():\n    return 1" in text
    for there in ["Heading", "first", "second", "cell", "inner"]:
        assert there in text
    for gone in [
        "The title",
        "Home",
        "link.example",
        "alternative",
        "alert",
        "comment",
        "Footer",
        "p {}",
    ]:
        assert gone not in text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("<html><body></body></html>", ""),
        ("no HTML, 1 < 2", "no HTML, 1 < 2"),
        ("<p>open <b>bold <i>both</p><div>next", "open bold both\n\nnext"),
        ("</div></p><p>closed</p></body></html><p>after", "closed\n\nafter"),
        ("<p>a\0b</p>", "ab"),
        ("<" * 2000, "<" * 2000),
        ("<div>" * 100_000 + "deep", "deep"),  # minutes, were main content looked for
        ("<ul><li>x</ul>" * 1000, "  • x\n" * 999 + "  • x"),
        ("<pre>  indented\n    more</pre>", "  indented\n    more"),
        ("<p> \n </p>", ""),
    ],
)
def test_broken_pages(html: str, text: str) -> None:
    assert main_text(html) == text


BITS = [
    "<",
    ">",
    "</",
    "<td>",
    "<svg>",
    "<template>",
    "<frameset>",
    "&#x110000;",
    "\0",
    "\ufffe",
    "😀",
]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_damaged_pages_give_text_that_can_be_written(seed: int, edits: int) -> None:
    rng = random.Random(seed)
    page = PAGE
    for _ in range(edits):
        begin, end = sorted(rng.choices(range(len(page) + 1), k=2))
        piece = rng.choice([*BITS, page[begin:end]])
        page = page[:begin] + piece + page[min(end, begin + rng.randrange(9)) :]
    main_text(page[:20_000]).encode()


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    main_text(text).encode()


@pytest.mark.parametrize(
    "around", ["{}", "<div>{}</div>", "<main><article><div>{}</div></article></main>"]
)
def test_lists_stay_and_menus_go(around: str) -> None:
    menu = "<ul><li><a href='/'>Home page</a><li><a href='/n'>News</a></ul>"
    text = main_text(
        around.format(f"{menu}<p>Said before.</p><ul><li>One of <a>them</a> is long.<li>Two</ul>")
    )
    assert text == "Said before.\n\n  • One of them is long.\n  • Two"
    assert (
        main_text("<p>a</p><nav><ul><li>in nav</ul></nav><footer><ul><li>below</ul></footer>")
        == "a"
    )


def test_as_a_block() -> None:
    table = ExtractHTML()(documents(["<p>One &amp; two</p>", "<script>x</script>"], url=["u", "v"]))
    assert table["text"].to_pylist() == ["One & two", ""]
    assert table["dropped"].to_pylist() == [None, "extract: no main text"]
    assert ExtractHTML().texts(["<p>three lines</p>"]) == ["three lines"]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ('<meta name="robots" content="noai, noimageai">', "noai, noimageai"),
        ("<META CONTENT=noindex NAME=robots>", "noindex"),
        (
            "<meta name='tdm-reservation' content='1'><meta name='robots' content='index'>",
            "tdm-reservation: 1, index",
        ),
        ('<meta name="description" content="robots">', None),
        ('<meta name="description" content="how name=robots works: noai">', None),
        ('<meta data-name="robots" name="description" content="noai">', None),
        ('<meta http-equiv="X-Robots-Tag" content="noai">', "noai"),
        ('<meta name="robots" content="noindex&#44;noai">', "noindex,noai"),
        (f'<meta name="robots" data-x="{"a" * 600}" content="noai">', "noai"),
        ('<meta name="robots">', None),
        ('<!-- <meta name="robots" content="noai"> -->', None),
        ('<!-- a --><meta name="robots" content="noml">', "noml"),
        ('<script>"<meta name=robots content=noai>"</script>', None),
        (f"<style>{'a{}' * 40_000}</style><meta name=robots content=noai>", "noai"),
        ("<!--" * 50_000 + "<meta name=robots content=noai>", None),
        ("", None),
    ],
)
def test_what_a_page_says_to_robots(head: str, said: str | None) -> None:
    assert robots(f"<html><head>{head}</head><body>x</body></html>") == said
