"""HTML to the text that a reader came for, by resiliparse; and what a page says to robots.

ExtractHTML()(documents(["<html><body><p>Text.</p></body></html>"]))["text"]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, texts, with_column

_DEEPEST = 512  # elements in each other; browsers stop at it too
_DEEP = " > ".join("*" * _DEEPEST)
_HIGH = 4  # elements below <body>: a <ul> up there is navigation to resiliparse
_HIGH_LISTS = ", ".join("body > " + "* > " * between + "ul" for between in range(_HIGH))
_MENU = 5  # characters of text for each of a link's
# Where a meta tag is no tag. What is not closed goes to the end, as in a browser.
_HIDDEN = re.compile(
    r"<!--(?:.*?-->|.*)|<(script|style|textarea|title|template|noembed)\b[^>]*>(?:.*?</\1\s*>|.*)",
    re.I | re.S,
)
_META = re.compile(r"<meta\b[^>]{0,500}>", re.I)
_NAME = re.compile(r"""\bname\s*=\s*["']?(robots|tdm-reservation)\b""", re.I)
_NAMED = re.compile("robots|tdm-reservation", re.I)
_CONTENT = re.compile(r"""\bcontent\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)


@dataclass(frozen=True)
class ExtractHTML(Block):
    """Replace "text", HTML, by its main text; drop pages that have none."""

    name = "extract"

    def apply(self, table: pa.Table) -> pa.Table:
        """Set "text" and fill "dropped"."""
        found = pa.array(
            [main_text(html) for html in texts(table["text"]).to_pylist()], pa.large_string()
        )
        reasons = pc.if_else(pc.equal(found, ""), "no main text", pa.scalar(None, pa.string()))
        return self.drop(with_column(table, "text", found), reasons)


def main_text(html: str) -> str:
    """The main text of a page: paragraphs, lists and <pre> on lines of their own, entities decoded, nothing else.

    Without title, navigation, link targets, alternative texts, forms, scripts and comments. Any string will do: what
    is no HTML is one paragraph, and of a page nested beyond any browser's limit all visible text is taken.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(html)
    # What is main content is asked of every element's ancestors: 8,000 open <div> take 1.4 s, 100,000 took minutes.
    deep = html.count("<") > _DEEPEST and tree.document.query_selector(_DEEP) is not None  # type: ignore[union-attr]
    if not deep:
        _keep_lists(tree)
    text = extract_plain_text(tree, main_content=not deep, alt_texts=False)
    return text.rstrip().lstrip("\n")  # the first line may be code, and indented


def _keep_lists(tree: Any) -> None:
    """Put lists that are no menus deeper into the page: resiliparse takes every <ul> near <body> for navigation.

    By its own measure for the lists further down, one is a menu when more than a fifth of it is links.
    """
    if tree.document.query_selector(_HIGH_LISTS) is None:
        return
    lists, level = [], [tree.body]
    for _ in range(_HIGH):
        # By siblings: going through the matches of a selector is quadratic, 2 s for 1,000 lists.
        below = [child for element in level for child in _children(element)]
        lists += [element for element in below if element.tag == "ul"]
        level = [element for element in below if element.tag != "ul"]
    for found in lists:
        linked = sum(len(element.text) for element in found if element.tag == "a")
        if _MENU * linked <= len(found.text):
            outer = inner = tree.create_element("div")
            for _ in range(_HIGH - 1):
                inner.append_child(tree.create_element("div"))
                inner = inner.first_child
            found.parent.insert_before(outer, found)
            inner.append_child(found)


def _children(element: Any) -> Iterator[Any]:
    child = element.first_child
    while child is not None:
        if child.first_child is not None:  # others hold no list
            yield child
        child = child.next


def robots(html: str) -> str | None:
    """What the meta tags "robots" and "tdm-reservation" (W3C TDM Reservation Protocol) say; None if there are none."""
    said: list[str] = []
    if not _NAMED.search(html):
        return None
    for tag in _META.findall(_HIDDEN.sub("", html)):
        if (name := _NAME.search(tag)) and (content := _CONTENT.search(tag)):
            value = next(group for group in content.groups() if group is not None).strip()
            said.append(value if name[1].lower() == "robots" else f"tdm-reservation: {value}")
    return ", ".join(said) or None
