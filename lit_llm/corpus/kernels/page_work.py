"""How much work a page makes for the parser and the extractor, from its bytes, before either sees
it.

lexbor and resiliparse are linear in a page but for some things: attributes of one tag are compared
    with
each other, formatting elements that are not closed are copied into every block behind them, each
<div> looks at all text below it, and lines of lists are indented. 60 kB of those take minutes or
gigabytes. A limit in seconds would drop other pages on another machine, so what costs them is
counted. The numbers are those of the parser's own rules where these are simple, and mostly larger
where they are not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_llm.corpus.kernels.jit import kernel

# Each limit is about three seconds of one core, or 400 MB.
LIMITS = {
    "elements": 1_000_000,  # of the tree, with the copies of formatting elements
    "pairs of attributes": 1_000_000_000,
    "bytes times their depth": 1_000_000_000,
    "list levels": 10_000_000,  # over all tags: so often is a line indented
    "open formatting elements": 2048,
}

_VOID, _IMPLIED, _RAW, _FORMAT, _LIST, _CELL, _ROW, _TABLE = range(1, 9)
_ROOT, _FOREIGN, _BLOCK, _SCOPE, _PARAGRAPH, _ITEM, _TERM = range(9, 16)
_CLASSES = {
    _VOID: "area base basefont bgsound br col embed frame hr img input keygen link meta param"
    " source track wbr",
    _IMPLIED: "colgroup head",  # never in each other
    _TERM: "dd dt",
    _PARAGRAPH: "p",
    _ITEM: "li",
    _RAW: "iframe noembed noframes script style textarea title xmp",
    _FORMAT: "a b big code em font i nobr s small strike strong tt u",
    _LIST: "ol ul",
    _CELL: "caption td th",
    _ROW: "tbody tfoot thead tr",
    _TABLE: "table",
    _ROOT: "body html",
    # Special elements of the standard: behind one, the end tag of another element says nothing.
    _BLOCK: "address article aside blockquote button center details dir div dl fieldset figcaption"
    " figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup listing main menu nav noscript "
    "pre"
    " search section summary",
    _SCOPE: "applet marquee object template",  # and behind these, that of a block neither
    _FOREIGN: "math select svg",  # in which <style> and its like hold tags, or are left out
}
_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a's
_DEEPEST = 512  # below, no main content is looked for; see `extract`
_OPEN = 1024  # elements whose names are kept
_MARKERS = 1024  # cells in each other
_LISTS_COST = 200  # list levels that moving a list into the page counts as; see `extract`


def _hash(name: str) -> np.uint64:
    value = int(_OFFSET)
    for byte in name.encode():
        value = (value ^ byte) * int(_PRIME) % 2**64
    return np.uint64(value)


_NAMES = np.array([_hash(n) for names in _CLASSES.values() for n in names.split()], np.uint64)
_KINDS = np.array([kind for kind, names in _CLASSES.items() for _ in names.split()], np.int64)
_A, _NOBR, _OL = _hash("a"), _hash("nobr"), _hash("ol")


class Work(NamedTuple):
    """What a page asks of the parser and the extractor: the numbers of `LIMITS`, in its order, and
    the depth.

    Attributes:
        depth: elements in each other, without those that the parser adds or closes by itself
            (<tbody>, <li>).
    """

    elements: int
    attribute_pairs: int
    deep_bytes: int
    list_levels: int
    formatting: int
    depth: int

    @property
    def too_much(self) -> str | None:
        """Why the page is not parsed: which of `LIMITS` it passes; None for one that is."""
        for (name, limit), number in zip(LIMITS.items(), self, strict=False):
            if number > limit:
                return f"page too complex: more than {limit:,} {name}"
        return None


def measure(html: str) -> Work:
    """The work of a page, without parsing it: 300 MB a second."""
    return Work(*_work(np.frombuffer(html.encode("utf-8", "replace"), np.uint8), _NAMES, _KINDS))


@kernel
def _name(data: np.ndarray, i: int) -> tuple[np.uint64, int]:
    """The hash of the tag's name that begins at byte ``i``, in small letters, and where it ends."""
    name = _OFFSET
    while i < len(data):
        byte = data[i]
        if byte == 62 or byte == 47 or byte == 32 or 9 <= byte <= 13:
            break
        if 65 <= byte <= 90:
            byte |= 0x20
        name = (name ^ np.uint64(byte)) * _PRIME
        i += 1
    return name, i


@kernel
def _work(
    data: np.ndarray, known: np.ndarray, kinds: np.ndarray
) -> tuple[int, int, int, int, int, int]:
    size = len(data)
    elements = pairs = depths = levels = most_open = deepest = 0
    names = np.zeros(_OPEN, np.uint64)  # of open elements
    kinds_open = np.zeros(_OPEN, np.int64)
    depth = 0
    over = 0  # open elements whose names are not kept
    uls = ols = foreign = 0
    unclosed = False  # a <script> or its like, which is looked for to the end of the page
    of_root = 0  # attributes of <html> and <body>, which collect those of all such tags
    # The list of active formatting elements, and its markers.
    active_name = np.zeros(2050, np.uint64)
    active_tag = np.zeros(2050, np.uint64)
    active = 0
    marks = np.zeros(_MARKERS, np.int64)
    mark_table = np.zeros(_MARKERS, np.int64)
    marked = 0
    tables = 0
    i = 0
    while i < size:
        begin = i
        while i < size and data[i] != 60:  # <
            i += 1
        depths += (i - begin) * min(depth + over, _DEEPEST)
        if i + 1 >= size:
            break
        begin = i
        sign = data[i + 1]
        if sign == 33 or sign == 63:  # ! ?
            if i + 3 < size and data[i + 2] == 45 and data[i + 3] == 45:  # --
                i += 4
                if i < size and data[i] == 62:
                    i += 1
                    continue
                if i + 1 < size and data[i] == 45 and data[i + 1] == 62:
                    i += 2
                    continue
                while i < size and not (
                    data[i] == 62
                    and (
                        (data[i - 1] == 45 and data[i - 2] == 45)
                        or (data[i - 1] == 33 and data[i - 2] == 45 and data[i - 3] == 45)
                    )
                ):
                    i += 1
            else:
                while i < size and data[i] != 62:
                    i += 1
            i += 1
            continue
        closing = sign == 47
        i += 2 if closing else 1
        lower = data[i] | 0x20 if i < size else 0
        if not 97 <= lower <= 122:  # no tag: text, or after </ a comment
            while closing and i < size and data[i] != 62:
                i += 1
            continue
        name, i = _name(data, i)
        tag = name
        attributes = 0
        while i < size:
            byte = data[i]
            if byte == 62:
                break
            if byte == 47 or byte == 32 or 9 <= byte <= 13:
                i += 1
                continue
            attributes += 1
            first = True  # an attribute may begin with "="
            while i < size:
                byte = data[i]
                if byte == 62 or byte == 47 or byte == 32 or 9 <= byte <= 13:
                    break
                if byte == 61 and not first:
                    break
                first = False
                tag = (tag ^ np.uint64(byte)) * _PRIME
                i += 1
            while i < size and (data[i] == 32 or 9 <= data[i] <= 13):
                i += 1
            if i >= size or data[i] != 61:
                continue
            i += 1
            while i < size and (data[i] == 32 or 9 <= data[i] <= 13):
                i += 1
            if i >= size:
                break
            quote = data[i]
            if quote == 34 or quote == 39:
                i += 1
                while i < size and data[i] != quote:
                    tag = (tag ^ np.uint64(data[i])) * _PRIME
                    i += 1
                i += 1
            else:
                while i < size:
                    byte = data[i]
                    if byte == 62 or byte == 32 or 9 <= byte <= 13:
                        break
                    tag = (tag ^ np.uint64(byte)) * _PRIME
                    i += 1
        i += 1
        kind = 0
        for k in range(len(known)):
            if known[k] == name:
                kind = kinds[k]
                break
        if foreign > 0 and kind in (_CELL, _ROW):
            kind = 0  # in <math> a cell is an element as any other
        deep = depth + over
        deepest = max(deepest, deep)
        elements += 1
        pairs += attributes * attributes
        depths += (min(i, size) - begin) * min(deep, _DEEPEST)
        levels += uls + ols
        if kind == _ROOT:
            pairs += 4 * of_root * attributes  # measured: four times as slow
            of_root += attributes
        # Markers of the list of active formatting elements.
        if kind == _TABLE and not closing:
            tables += 1
        if kind in (_CELL, _ROW) or (kind == _TABLE and closing):
            while marked > 0 and mark_table[marked - 1] >= tables:
                marked -= 1
                active = min(active, marks[marked])
            if kind == _CELL and not closing and marked < _MARKERS:
                marks[marked] = active
                mark_table[marked] = tables
                marked += 1
        if kind == _TABLE and closing:
            tables = max(0, tables - 1)
        floor = marks[marked - 1] if marked > 0 else 0
        # Of the open elements: those that this tag closes, or the one that it takes out.
        if kind in (_CELL, _ROW):
            k = depth - 1
            while k >= 0 and kinds_open[k] != _TABLE and kinds_open[k] != _SCOPE:
                k -= 1
            if k >= 0 and kinds_open[k] == _TABLE:
                depth = k + 1
        elif not closing and kind in (_PARAGRAPH, _ITEM, _TERM, _BLOCK, _LIST, _TABLE):
            for target in (_ITEM, _TERM, _PARAGRAPH):
                if target != kind and target != _PARAGRAPH:
                    continue
                k = depth - 1
                while (
                    k >= 0 and kinds_open[k] in (0, _FORMAT, _PARAGRAPH) and kinds_open[k] != target
                ):
                    k -= 1
                if k >= 0 and kinds_open[k] == target:
                    depth = k
        elif kind == _FORMAT and (closing or name in (_A, _NOBR)):
            k = depth - 1
            while k >= 0 and names[k] != name and kinds_open[k] not in (_SCOPE, _TABLE):
                k -= 1
            if k >= 0 and names[k] == name:
                for other in range(k, depth - 1):
                    names[other] = names[other + 1]
                    kinds_open[other] = kinds_open[other + 1]
                depth -= 1
        if kind in (_FORMAT, _PARAGRAPH, _ITEM, _TERM) and not closing:
            if depth < _OPEN:
                names[depth] = name
                kinds_open[depth] = kind
                depth += 1
            else:
                over += 1
        if kind == _FORMAT:
            if closing or name in (_A, _NOBR):
                k = active - 1
                while k >= floor and active_name[k] != name:
                    k -= 1
            else:
                same, k = 0, -1  # three alike at most, the first of them goes
                for other in range(active - 1, floor - 1, -1):
                    if active_tag[other] == tag:
                        same += 1
                        if same == 3:
                            k = other
                            break
            if k >= floor:
                for other in range(k, active - 1):
                    active_name[other] = active_name[other + 1]
                    active_tag[other] = active_tag[other + 1]
                active -= 1
            if not closing:
                active_name[active] = name
                active_tag[active] = tag
                active += 1
                most_open = max(most_open, active)
                if active > 2048:
                    break
            continue
        if kind == _VOID:
            continue
        elements += active - floor
        if kind == _FOREIGN:
            foreign = max(0, foreign - 1) if closing else foreign + 1
        if kind == _RAW and not closing and foreign == 0 and not unclosed:
            # Up to its end tag there are no tags.
            start = i
            found = False
            while i < size and not found:
                while i < size and data[i] != 60:
                    i += 1
                if i + 1 < size and data[i + 1] == 47:
                    end_name, end = _name(data, i + 2)
                    found = end_name == name and end < size
                if not found:
                    i += 1
            if not found:
                i, unclosed = start, True
            continue
        if kind in (_IMPLIED, _CELL, _ROW, _ROOT):
            continue
        if kind in (_PARAGRAPH, _ITEM, _TERM) and not closing:
            continue
        if kind == _LIST:
            step = -1 if closing else 1
            if not closing:
                levels += _LISTS_COST
            if name == _OL:
                ols = max(0, ols + step)
            else:
                uls = max(0, uls + step)
        if not closing:
            if depth < _OPEN:
                names[depth] = name
                kinds_open[depth] = kind
                depth += 1
            else:
                over += 1
        elif over > 0:
            over -= 1
        else:
            k = depth - 1
            while k >= 0 and names[k] != name:
                other_kind = kinds_open[k]
                if kind != _TABLE and other_kind in (_SCOPE, _TABLE):
                    break
                if kind == 0 and other_kind in (_BLOCK, _LIST, _PARAGRAPH, _ITEM, _TERM):
                    break
                k -= 1
            if k >= 0 and names[k] == name:
                depth = k
    return elements, pairs, depths, levels, most_open, deepest
