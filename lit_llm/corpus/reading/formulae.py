"""Convert formulae of a page to TeX between dollar signs: MathML, MathJax, pictures of TeX.

with_formulae('<math><msup><mi>x</mi><mn>2</mn></msup></math>')  # '<span>$x^{2}$</span>'
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Callable
from typing import Any

_MATH, _MATH_END = re.compile(r"<math[\s>]", re.I), re.compile(r"</math\s*>", re.I)
_SCRIPT = re.compile(
    r"""<script\b[^<>]*?\btype\s*=\s*["']?math/(tex|mml|asciimath)\b([^<>]*)>""", re.I
)
_SCRIPT_END = re.compile(r"</script\s*>", re.I)
# Element around MathML for screen readers that hides the MathML on the page. Its attributes are
# removed, so that it does not hide the formula.
_WRAPPER = re.compile(r"<(span|mjx-assistive-mml)\b[^<>]*>\s*$", re.I)
_WRAPPER_LENGTH = 500
_PICTURE = re.compile(r"<img\b[^<>]*>", re.I)
_TEX_CLASS = re.compile(r"""\bclass\s*=\s*["']?[^"'<>]*\b(?:la)?tex\b""", re.I)
_ALT = re.compile(r"""\balt\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.I)
_TEX = re.compile(r"(?:application/x-|math/|text/)?(?:la)?tex\b", re.I)
_STYLE = re.compile(r"\{\\(?:displaystyle|textstyle)\s*(.*)\}", re.S)
_INVISIBLE = re.compile("[\u2061-\u2064]")
_MOST = 10_000  # formulae converted in a page; one takes 0.1 ms. Later ones stay as they are
_DEEPEST = 50  # levels of nested MathML elements; deeper ones give their text as it is
_FUNCTIONS = frozenset(
    """arccos arcsin arctan cos cosh cot det dim exp gcd inf ker lim ln log max min sec sin sinh
    sup tan tanh""".split()  # noqa: SIM905
)


def with_formulae(html: str) -> str:
    """Return the page with its formulae as ``<span>$TeX$</span>``, displayed ones as ``$$TeX$$``.

    TeX in the page is used: an annotation of MathML, "alttext", a script of MathJax, the
    alternative text of a picture of class "tex" or "latex". MathML without TeX is converted, for
    the usual elements.
    """
    if "math" in html or "MATH" in html:
        # Pages that MathJax has processed have both. The script is the author's source.
        both = "MJX_Assistive_MathML" in html and _SCRIPT.search(html) is not None
        html = _replaced(html, _SCRIPT, _SCRIPT_END, _of_script)
        html = _replaced(html, _MATH, _MATH_END, _dropped if both else _of_mathml, keep_tag=True)
    if "latex" in html or 'class="tex"' in html:
        html = _PICTURE.sub(_of_picture, html)
    return html


def _replaced(
    html: str,
    start: re.Pattern[str],
    end: re.Pattern[str],
    render: Callable[[re.Match[str], str], str],
    keep_tag: bool = False,
) -> str:
    """Replace each stretch from ``start`` to ``end`` by the result of ``render``, in one pass."""
    parts: list[str] = []
    at = 0
    while (
        len(parts) < 2 * _MOST
        and (begin := start.search(html, at))
        and (stop := end.search(html, begin.end()))
    ):
        inner = html[begin.start() : stop.end()] if keep_tag else html[begin.end() : stop.start()]
        before = html[at : begin.start()]
        if keep_tag and (wrapper := _WRAPPER.search(before, max(0, len(before) - _WRAPPER_LENGTH))):
            before = f"{before[: wrapper.start()]}<{wrapper[1]}>"
        parts += [before, render(begin, inner)]
        at = stop.end()
    return "".join([*parts, html[at:]]) if parts else html


def _span(tex: str, display: bool) -> str:
    sign = "$$" if display else "$"
    tex = " ".join(tex.split())
    return f"<span>{sign}{entities.escape(tex, quote=False)}{sign}</span>" if tex else ""


def _dropped(start: re.Match[str], inner: str) -> str:
    return ""


def _of_script(start: re.Match[str], inner: str) -> str:
    kind = start[1].lower()
    if kind == "mml":
        return _of_mathml(start, inner)
    if kind == "asciimath":
        return f"<span>{entities.escape(inner, quote=False)}</span>"
    return _span(inner, "display" in start[2].lower())


def _of_picture(tag: re.Match[str]) -> str:
    alt = _ALT.search(tag[0]) if _TEX_CLASS.search(tag[0]) else None
    if alt is None:
        return tag[0]
    return _span(entities.unescape(alt[1] or alt[2] or "").strip().strip("$"), False)


def _of_mathml(start: re.Match[str], source: str) -> str:
    from resiliparse.parse.html import HTMLTree

    document: Any = HTMLTree.parse(source).document
    math = document.query_selector("math")
    if math is None:
        return ""
    display = (math.get_attribute("display") or "").lower() == "block"
    tex = next(
        (
            element.text
            for element in math.query_selector_all("annotation").values()
            if _TEX.match(element.get_attribute("encoding") or "")
        ),
        None,
    )
    tex = (tex or math.get_attribute("alttext") or _tex(math, 0)).strip()
    styled = _STYLE.fullmatch(tex)
    return _span(styled[1] if styled else tex, display)


def _tex(node: Any, depth: int) -> str:
    """Return the TeX of a MathML element and its children."""
    children, child = [], node.first_element_child
    while child is not None:
        children.append(child)
        child = child.next_element_sibling
    name = (node.tag or "").lower()
    if depth > _DEEPEST or not children:
        return _of_leaf(name, _INVISIBLE.sub("", " ".join((node.text or "").split())))
    parts = [_tex(child, depth + 1) for child in children]
    if name == "semantics":
        return parts[0]
    if name == "msqrt":
        return f"\\sqrt{{{_joined(parts)}}}"
    if name in ("mtable", "mtr"):
        return (" \\\\ " if name == "mtable" else " & ").join(parts)
    if name == "mfenced":
        signs = [node.get_attribute(key) or usual for key, usual in (("open", "("), ("close", ")"))]
        return signs[0] + ", ".join(parts) + signs[1]
    form = _FORMS.get(name)
    if form is not None and len(parts) == form[0]:
        return form[1].format(*parts)
    return _joined(parts)


# Element -> its number of children, and the TeX template that joins them.
_FORMS = {
    "mfrac": (2, "\\frac{{{0}}}{{{1}}}"),
    "mroot": (2, "\\sqrt[{1}]{{{0}}}"),
    "msub": (2, "{0}_{{{1}}}"),
    "msup": (2, "{0}^{{{1}}}"),
    "munder": (2, "{0}_{{{1}}}"),
    "mover": (2, "{0}^{{{1}}}"),
    "msubsup": (3, "{0}_{{{1}}}^{{{2}}}"),
    "munderover": (3, "{0}_{{{1}}}^{{{2}}}"),
}


def _of_leaf(name: str, text: str) -> str:
    if name in ("annotation", "annotation-xml", "mphantom"):
        return ""
    if name == "mspace":
        return " "
    if name == "mtext" and text:
        return f"\\text{{{text}}}"
    if name == "mi" and len(text) > 1:
        return f"\\{text}" if text in _FUNCTIONS else f"\\mathrm{{{text}}}"
    return text


def _joined(parts: list[str]) -> str:
    """Join parts, with a blank where a letter would extend a command's name."""
    found = ""
    for part in parts:
        found += " " * bool(re.search(r"\\[A-Za-z]+$", found) and part[:1].isalpha()) + part
    return found
