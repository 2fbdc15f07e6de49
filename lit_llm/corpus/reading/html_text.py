"""Main text of HTML pages, by resiliparse, and the pages' instructions to robots.

ExtractHTML()(documents(["<html><body><p>Text.</p></body></html>"]))["text"]
"""

from __future__ import annotations

import html as entities
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lit_llm.corpus.block import Block, texts, with_column
from lit_llm.corpus.kernels.page_work import Work, measure
from lit_llm.corpus.reading.formulae import with_formulae

_DEEPEST = 512  # levels of nested elements; browsers stop at this depth too
_DEEP = " > ".join("*" * _DEEPEST)
# Maximum number of nested elements for each one in the source. Parsers add implied elements: a
# <table> with a cell has four.
_IMPLIED = 5
_HIGH = 4  # levels below <body> at which resiliparse takes a <ul> for navigation
_HIGH_LISTS = ", ".join("body > " + "* > " * between + "ul" for between in range(_HIGH))
_MENU = 5  # a list is no menu if it has this many characters per character of links
# resiliparse takes a text of one three-byte character for an icon of the private use area. So such
# a text gets a second character: one that Unicode guarantees never to assign.
_MARK = "\ufdd0"
_THREE_BYTES = (
    r"\u0800-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff\uf900-\ufefe\uff00-\uffff"
)
_ALONE = re.compile(rf">[ \t-\r]*([{_THREE_BYTES}]|&\#?\w{{1,31}};?)(?=[ \t-\r]*(?:<|\Z))")
_VISIBLE = re.compile(f"[{_THREE_BYTES}]")
# For each <option>, lexbor looks at all earlier ones of the <select>. Their text is never used.
_OPTIONS = 1000
_LOOKED_AT = 2000  # elements of a page that are checked one by one, in about 0.2 ms
_FIGURE_PASSES = 10  # characters checked in figures, as a multiple of the page's length
_FIGURE, _TIME = re.compile(r"<(/?)(?:figure|figcaption)\b", re.I), re.compile(r"<(/?)time\b", re.I)
# Block elements that resiliparse treats as inline, as words of the line that follows.
_BLOCKS = re.compile(r"<(/?)(?:summary|legend|search)\b(?=[\s/>])", re.I)
_OPTION = re.compile(r"<(/?)option\b", re.I)
_ABOUT_PAGE = (
    'time, [rel="author"], [rel="tag"],'
    ' [itemprop="datePublished"], [itemprop="author"], [itemprop="url"]'
)
# A page without one of these is not searched. "rel" is missing, as <link rel="..."> is everywhere.
_ASIDE_WORDS = (
    "<time", "<TIME", "<Time", "itemprop", "presentation", "author", '"tag"', "'tag'", "=tag",
)  # fmt: skip
_INLINE = frozenset(
    """a abbr b bdi bdo big cite code data dfn em font i ins kbd mark q s samp small span strong sub
    sup time tt u var""".split()  # noqa: SIM905
)
_BREAKS = frozenset(["br", "hr"])
_CELLS = frozenset(
    ["caption", "dd", "dt", *(f"h{level}" for level in range(1, 7)), "li", "td", "th"]
)
_INLINE_LEVELS, _BESIDE = 4, 8  # limits of the search for text beside an element
# Elements that resiliparse skips when alternative texts are off, except figures.
_NO_TEXT = ("object", "video", "audio", "embed", "img", "area", "svg")
# Places where a meta tag is not an element. An unclosed one extends to the end, as in a browser.
_HIDDEN = re.compile(
    r"<!--(?:.*?-->|.*)"
    r"|<(script|style|textarea|title|template|noembed)\b[^>]{0,1000}>(?:.*?</\1\s*>|.*)",
    re.I | re.S,
)
_META = re.compile(r"<meta\b[^>]{0,1000}>", re.I)
_NAMED = re.compile("robots|tdm-reservation", re.I)
_ATTRIBUTE = re.compile(r"""([^\s"'=<>/]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")


@dataclass(frozen=True)
class ExtractHTML(Block):
    """Replace the HTML in "text" by its main text; drop pages without one."""

    name = "extract"

    def apply(self, table: pa.Table) -> pa.Table:
        """Set "text" and fill "dropped"."""
        found = [extract(html) for html in texts(table["text"]).to_pylist()]
        reasons = pa.array([reason for _, reason in found], pa.string())
        text = pa.array([text for text, _ in found], pa.large_string())
        return self.drop(with_column(table, "text", text), reasons)


def extract(html: str) -> tuple[str, str | None]:
    """Return (main text, None) of a page, or ("", reason).

    The reasons: the page has no text, or parsing it takes too much work.
    """
    work = measure(html)
    if reason := work.too_much:
        return "", reason
    text = _main_text(html, work)
    return text, None if text else "no main text"


def main_text(html: str) -> str:
    """Return the main text of a page.

    Paragraphs, lists and <pre> are on lines of their own, entities are decoded, formulae are TeX
    between dollar signs. Title, navigation, link targets, alternative texts, forms, scripts and
    comments are left out. Any string is accepted: text without HTML is one paragraph, and of a page
    nested deeper than any browser allows all visible text is returned. Time and memory have no
    bound here; `extract` checks the work first.
    """
    return _main_text(html, measure(html))


def _main_text(html: str, work: Work) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(_readable(html))
    # To find the main content, resiliparse looks at the ancestors of every element: 8,000 open
    # <div> take 1.4 s, 100,000 took minutes.
    deep = work.depth > _DEEPEST // _IMPLIED
    deep = deep and tree.document.query_selector(_DEEP) is not None  # type: ignore[union-attr]
    if deep:
        text = extract_plain_text(tree, skip_elements=_NO_TEXT)
    else:
        if "figure" in html or "FIGURE" in html:
            _keep_figures(tree, _FIGURE_PASSES * len(html))
        _keep_lists(tree)
        if any(word in html for word in _ASIDE_WORDS):
            _keep_asides(tree)
        text = extract_plain_text(tree, main_content=True, alt_texts=False)
    # The first line may be indented code, so only line ends are stripped from the start.
    return text.replace(_MARK, "").rstrip().lstrip("\n")


def _readable(html: str) -> str:
    """Change the page so that resiliparse loses no text of it."""
    if html.count("<option") + html.count("<OPTION") > _OPTIONS:
        html = _OPTION.sub(r"<\1span hidden ", html)
    # Too many to check one by one: keep them all, as elements that resiliparse keeps.
    if html.count("<figure") + html.count("<time") > _LOOKED_AT:
        html = _TIME.sub(r"<\1span ", _FIGURE.sub(r"<\1div ", html))
    html = _BLOCKS.sub(r"<\1div", with_formulae(html.replace(_MARK, "")))
    if html.isascii() and "&" not in html:
        return html
    return _ALONE.sub(_marked, f">{html}")[1:]


def _marked(alone: re.Match[str]) -> str:
    """Add the mark to a text of one character, unless that is an icon or blank."""
    return alone[0] + _MARK * bool(_VISIBLE.fullmatch(entities.unescape(alone[1])))


def _keep_figures(tree: Any, limit: int) -> None:
    """Turn figures with text into <div>, because resiliparse drops every <figure>.

    Such text is a table, code or a quotation. Figures with only a picture and its caption are still
    dropped. After ``limit`` checked characters all figures are kept.
    """
    left = limit
    for figure in tree.document.query_selector_all("figure").values():
        aside = "figcaption, svg, script, style, noscript, button"
        # Visible characters of the figure, without those of captions and the like. Nested elements
        # are counted again on every level, hence the limit.
        ink = 0
        for sign, part in (
            (1, figure),
            *((-1, e) for e in figure.query_selector_all(aside).values()),
        ):
            left -= len(part.text)
            if left < 0:
                break
            ink += sign * _ink(part)
        if left < 0 or ink > 0:
            for caption in figure.query_selector_all("figcaption").values():
                _rename(tree, caption, "div")
            _rename(tree, figure, "div")


def _ink(node: Any) -> int:
    """Number of visible characters."""
    return sum(map(len, (node.text or "").split()))


def _keep_asides(tree: Any) -> None:
    """Keep elements that resiliparse takes for data about the page, if they are part of a sentence.

    These are <time> and elements with rel or itemprop.
    """
    for element in tree.document.query_selector_all(_ABOUT_PAGE)[:_LOOKED_AT]:
        in_text = _in_text(element)
        if element.tag == "time":
            if in_text or _block_of(element) in _CELLS:
                _rename(tree, element, "span")
        elif in_text:
            for name in ("rel", "itemprop"):
                element.remove_attribute(name)
    for element in tree.document.query_selector_all('[role="presentation"]')[:_LOOKED_AT]:
        # The role says that a table is only for layout, not that it has no content.
        element.remove_attribute("role")


def _in_text(element: Any) -> bool:
    """Whether there is text beside the element, on the same line."""
    for _ in range(_INLINE_LEVELS):
        for step in ("previous_sibling", "next_sibling"):
            beside = getattr(element, step)
            for _ in range(_BESIDE):
                if beside is None or (beside.tag or "") in _BREAKS:
                    break
                if beside.tag == "#text" or beside.tag in _INLINE:
                    if any(map(str.isalnum, beside.text or "")):
                        return True
                elif beside.tag != "#comment":
                    break
                beside = getattr(beside, step)
        element = element.parent
        if element is None or element.tag not in _INLINE:
            return False
    return False


def _block_of(element: Any) -> str:
    """Return the name of the block element that contains this one."""
    for _ in range(_INLINE_LEVELS):
        element = element.parent
        if element is None or element.tag not in _INLINE:
            break
    return "" if element is None else element.tag or ""


def _rename(tree: Any, element: Any, name: str) -> None:
    """Replace an element by one with another name, without attributes."""
    other = tree.create_element(name)
    while (child := element.first_child) is not None:
        other.append_child(child)
    element.replace_with(other)


def _keep_lists(tree: Any) -> None:
    """Move lists that are no menus deeper into the page.

    resiliparse takes every <ul> near <body> for navigation. The measure is the one that it uses for
    deeper lists: a list is a menu when more than a fifth of it is links.
    """
    for found in tree.document.query_selector_all(_HIGH_LISTS).values():
        if found.parent.closest("ul") is not None:
            continue  # moves together with the list that contains it
        linked = sum(len(element.text) for element in found.query_selector_all("a").values())
        if _MENU * linked <= len(found.text):
            outer = inner = tree.create_element("div")
            for _ in range(_HIGH - 1):
                inner.append_child(tree.create_element("div"))
                inner = inner.first_child
            found.parent.insert_before(outer, found)
            inner.append_child(found)


def robots(html: str) -> str | None:
    """Return the content of the meta tags "robots" and "tdm-reservation"; None without them.

    The latter is of the W3C TDM Reservation Protocol.
    """
    said: list[str] = []
    if not _NAMED.search(html):
        return None
    for tag in _META.findall(_HIDDEN.sub("", html)):
        found = {
            name.lower(): entities.unescape(value.strip("\"'")).strip()
            for name, value in _ATTRIBUTE.findall(tag)
        }
        name = (found.get("name") or found.get("http-equiv") or "").lower()
        if "content" in found and name in ("robots", "x-robots-tag"):
            said.append(found["content"])
        elif "content" in found and name == "tdm-reservation":
            said.append(f"tdm-reservation: {found['content']}")
    return ", ".join(said) or None
