"""Estimate the cost of parsing and extracting an HTML page from its bytes, before parsing it.

The time of lexbor and resiliparse is linear in the size of a page, with four exceptions:
attributes of one tag are compared with each other; formatting elements that are not closed are
copied into every later block; each <div> looks at all text below it; and lines of lists are
indented. 60 kB of these can take minutes or gigabytes.

A limit in seconds would drop different pages on different machines. Therefore the operations are
counted. The counts follow the parser's own rules where these are simple. Elsewhere the counts are
mostly too large rather than too small.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_llm.corpus.kernels.jit import kernel

# Each limit corresponds to about three seconds of one core, or 400 MB.
LIMITS = {
    "elements": 1_000_000,  # of the tree, including the copies of formatting elements
    "pairs of attributes": 1_000_000_000,
    "bytes times their depth": 1_000_000_000,
    "list levels": 10_000_000,  # sum over all tags: the number of indentations of lines
    "open formatting elements": 2048,
}

_VOID, _IMPLIED, _RAW, _FORMAT, _LIST, _CELL, _ROW, _TABLE = range(1, 9)
_ROOT, _FOREIGN, _BLOCK, _SCOPE, _PARAGRAPH, _ITEM, _TERM = range(9, 16)
_CLASSES = {
    _VOID: "area base basefont bgsound br col embed frame hr img input keygen link meta param"
    " source track wbr",
    _IMPLIED: "colgroup head",  # never nested
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
    # Special elements of the HTML standard. Inside one, the end tag of an ordinary element outside
    # it is ignored.
    _BLOCK: "address article aside blockquote button center details dir div dl fieldset figcaption"
    " figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup listing main menu nav noscript"
    " pre search section summary",
    # Inside one of these, the end tag of a block outside it is ignored too.
    _SCOPE: "applet marquee object template",
    # In these, <style> and similar elements can contain tags, or are dropped.
    _FOREIGN: "math select svg",
}
# Parameters of the FNV-1a hash.
_OFFSET, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_DEEPEST = 512  # no main content is searched below this depth; see `extract`
_OPEN = 1024  # most open elements whose names are stored
_MARKERS = 1024  # most nested table cells
_LISTS_COST = 200  # cost of moving a list into the page, in list levels; see `extract`


def _hash(name: str) -> np.uint64:
    value = int(_OFFSET)
    for byte in name.encode():
        value = (value ^ byte) * int(_PRIME) % 2**64
    return np.uint64(value)


_NAMES = np.array([_hash(n) for names in _CLASSES.values() for n in names.split()], np.uint64)
_KINDS = np.array([kind for kind, names in _CLASSES.items() for _ in names.split()], np.int64)
_A, _NOBR, _OL = _hash("a"), _hash("nobr"), _hash("ol")


class Work(NamedTuple):
    """Cost of a page for the parser and the extractor: the counts of `LIMITS`, in the same order.

    Attributes:
        depth: deepest nesting of elements, without elements that the parser adds or closes itself
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
        """Why the page is not parsed: the first of `LIMITS` that it exceeds; None if none."""
        for (name, limit), number in zip(LIMITS.items(), self, strict=False):
            if number > limit:
                return f"page too complex: more than {limit:,} {name}"
        return None


def measure(html: str) -> Work:
    """Estimate the work of a page without parsing it, at 300 MB per second."""
    return Work(*_work(np.frombuffer(html.encode("utf-8", "replace"), np.uint8), _NAMES, _KINDS))


@kernel
def _name(data: np.ndarray, i: int) -> tuple[np.uint64, int]:
    """(hash of the lower-case tag name that begins at byte ``i``, position where it ends)."""
    name = _OFFSET
    while i < len(data):
        byte = data[i]
        if byte == 62 or byte == 47 or byte == 32 or 9 <= byte <= 13:  # > / whitespace
            break
        if 65 <= byte <= 90:  # A to Z
            byte |= 0x20
        name = (name ^ np.uint64(byte)) * _PRIME
        i += 1
    return name, i


@kernel
def _work(
    data: np.ndarray, known: np.ndarray, kinds: np.ndarray
) -> tuple[int, int, int, int, int, int]:
    """Scan the tags of a page and simulate the parser's stack of open elements; see `Work`.

    Each step of the outer loop skips the text up to the next tag, reads the tag and its attributes,
    and updates three structures of the HTML standard (section 13.2.4): the stack of open elements
    (``names``, ``kinds_open``, ``depth``), the list of active formatting elements (``active_*``)
    and the markers in that list, which table cells insert (``marks``).
    """
    size = len(data)
    elements = pairs = depths = levels = most_open = deepest = 0
    names = np.zeros(_OPEN, np.uint64)  # of open elements
    kinds_open = np.zeros(_OPEN, np.int64)
    depth = 0
    over = 0  # number of open elements beyond _OPEN, whose names are not stored
    uls = ols = foreign = 0
    # A <script> or similar element had no end tag, which was searched up to the end of the page.
    unclosed = False
    # Attributes of <html> and <body>: these elements collect the attributes of all such tags.
    of_root = 0
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
        # Skip comments, <!doctype ...> and <?...>. A comment ends at "-->" or "--!>"; "<!-->" and
        # "<!--->" are complete comments.
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
        if not 97 <= lower <= 122:  # not a letter, so not a tag: text, or a comment after "</"
            while closing and i < size and data[i] != 62:
                i += 1
            continue
        name, i = _name(data, i)
        # Count the attributes up to ">". `tag` hashes the name and all attributes, to find equal
        # formatting tags.
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
            kind = 0  # inside <math>, a cell is an ordinary element
        deep = depth + over
        deepest = max(deepest, deep)
        elements += 1
        pairs += attributes * attributes
        depths += (min(i, size) - begin) * min(deep, _DEEPEST)
        levels += uls + ols
        if kind == _ROOT:
            pairs += 4 * of_root * attributes  # measured: this comparison is four times as slow
            of_root += attributes
        # Markers of the list of active formatting elements: a cell inserts one. The next tag of a
        # cell or row, or the end tag of the table, removes the marker and the formatting elements
        # after it.
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
        # Remove elements from the stack that this tag closes. A cell or row closes everything up to
        # its table. A block closes an open <p>, an <li> or <dd> also the one before it. The end
        # tag of a formatting element, and a second <a> or <nobr>, takes that one element out.
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
        # Update the list of active formatting elements: remove the element that is closed, or the
        # first of three equal elements (the standard's "Noah's Ark clause"); add the opened one.
        if kind == _FORMAT:
            if closing or name in (_A, _NOBR):
                k = active - 1
                while k >= floor and active_name[k] != name:
                    k -= 1
            else:
                same, k = 0, -1
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
        # After this tag, the parser may copy every active formatting element.
        elements += active - floor
        if kind == _FOREIGN:
            foreign = max(0, foreign - 1) if closing else foreign + 1
        if kind == _RAW and not closing and foreign == 0 and not unclosed:
            # Raw text: there are no tags before its end tag. If there is no end tag, go on behind
            # the start tag, and do not search again for later elements.
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
        # Push an opened element. An end tag closes the nearest open element of its name, unless an
        # element between them hides it; see `_CLASSES`.
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
