"""One spelling for the same text: Unicode NFC, mojibake undone, no stray control characters, tidy
white space.

    Normalize().texts(["cafÃ©\\r\\n"])  # ["café\\n"]

Most text needs nothing. One scan by RE2 over Arrow's buffers finds the documents that might; pure
ASCII that passes it is done, the rest are asked whether they are NFC already.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, replaced, texts, with_column

_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# Nothing to read: byte order marks, soft hyphens, word joiners, invisible operators, bidirectional
# embeddings and overrides (which can also show a text in another order than it has), annotation
# anchors.
_INVISIBLE = re.compile("[\ufeff\u00ad\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
# A joiner after a letter of a script that joins, or after an emoji, makes another word or picture;
# after Latin, Greek and Cyrillic it does nothing. South-East Asian scripts part words by zero-width
# spaces.
_JOINERS = re.compile("(?:^|(?<=[\x00-\u058f\u2000-\u200b]))[\u200c\u200d]+", re.M)
_ZERO_WIDTH_SPACES = re.compile(
    "(?:^|(?<=[^\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]))\u200b+", re.M
)
_BLANKS = " \t\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_BLANK_LINES = re.compile("\n{3,}")
# What any of these touches, for RE2; non-ASCII white space only where it is trailing.
_DIRTY = (
    r"[\x00-\x08\x0e-\x1f\x7f-\x{9f}\x{ad}\x{feff}\x{2060}-\x{2064}\x{202a}-\x{202e}\x{2066}-\x{2069}\x{fff9}-\x{fffb}"
    r"\r\x{2028}\x{2029}\x{200b}-\x{200d}]"
)
_TRAILING = r"[ \t\x{a0}\x{1680}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}](?:\n|\z)"
_UNTIDY = rf"|[\v\f]|{_TRAILING}|\A\n|\n\n\n|\n\n\z"


@dataclass(frozen=True)
class Normalize(Block):
    """Rewrite "text" in one spelling; what is so already stays the same array. Twice changes
    nothing.

    Attributes:
        code: leave white space alone but for line ends, as a source file means it.
    """

    name = "normalize"
    code: bool = False

    def apply(self, table: pa.Table) -> pa.Table:
        """Replace "text"."""
        text = texts(table["text"])
        pattern = f"{_DIRTY}|{mojibake_gate()}" + ("" if self.code else _UNTIDY)
        dirty = pc.match_substring_regex(text, pattern)
        ascii_only = pc.equal(pc.binary_length(text), pc.utf8_length(text))
        suspects = pc.indices_nonzero(pc.or_(dirty, pc.invert(ascii_only)))
        rows, values = [], []
        for row in suspects.to_pylist():
            before = text[row].as_py()
            if dirty[row].as_py() or not unicodedata.is_normalized("NFC", before):
                after = self.normalize(before)
                if after != before:
                    rows.append(row)
                    values.append(after)
        return with_column(table, "text", replaced(text, rows, values))

    def normalize(self, text: str) -> str:
        """One text, normalised. What is taken out can join what stood around it, so until nothing
        changes."""
        while (after := self._once(text)) != text:
            text = after
        return text

    def _once(self, text: str) -> str:
        text = undo_mojibake(text)
        if not self.code:
            text = text.replace("\v", "\n").replace("\f", "\n")
        # Python's `re` reads some 10 MB/s of text in which there is nothing; RE2 knows at 250
        # whether there is.
        if _re2(_DIRTY).search(text):
            text = _LINE_ENDS.sub("\n", text)
            for pattern in (_CONTROLS, _INVISIBLE, _ZERO_WIDTH_SPACES, _JOINERS):
                text = pattern.sub("", text)
        text = unicodedata.normalize("NFC", text)
        if not self.code:
            if _re2(_TRAILING).search(text):
                # Not `re` with "$": that is quadratic in the length of a run of blanks.
                text = "\n".join([line.rstrip(_BLANKS) for line in text.split("\n")])
            text = _BLANK_LINES.sub("\n\n", text.lstrip("\n"))
            text = text[:-1] if text.endswith("\n\n") else text
        return text


def undo_mojibake(text: str) -> str:
    """Lines whose letters are another encoding's bytes, read rightly (by ftfy, where its
    `badness.is_bad` says so).

    Line by line, since a document can be put together from good and bad parts.
    """
    if text.isascii():
        return text
    import ftfy
    from ftfy.badness import is_bad

    gate, data = _re2(mojibake_gate()), text.encode()
    parts, at = [], 0
    while hit := gate.search(data, at):
        start = data.rfind(b"\n", 0, hit.start()) + 1
        end = data.find(b"\n", hit.end())
        line = data[start : end if end >= 0 else len(data)]
        parts.append(data[at:start])
        at = start + len(line)
        readable = line.decode()
        parts.append(ftfy.fix_encoding(readable).encode() if is_bad(readable) else line)
    return (b"".join(parts) + data[at:]).decode()


@functools.cache
def mojibake_gate() -> str:
    """RE2 for what UTF-8 read in one of ftfy's encodings cannot be without.

    A character of the bytes 0xC2 to 0xF4 and one of 0x80 to 0xBF behind it; two such pairs where
    these are letters of one alphabet that are common side by side (Cyrillic, Greek), or one beside
    a Latin letter. ftfy's own test reads 2 MB/s.
    """
    from ftfy.chardata import CHARMAP_ENCODINGS

    pairs = []
    for encoding in CHARMAP_ENCODINGS:
        lead, follow = (
            _character_class(bytes([byte]).decode(encoding, "ignore") for byte in span)
            for span in (range(0xC2, 0xF5), range(0x80, 0xC0))
        )
        pair = f"[{lead}][{follow}]"
        letters = "1251" in encoding or "1253" in encoding
        pairs.append(f"(?:{pair}){{2}}|[A-Za-z]{pair}|{pair}[A-Za-z]" if letters else pair)
    # Bytes that were lost: 0xA0 made a space, any other a U+FFFD.
    return "|".join([*dict.fromkeys(pairs), r"[\x{c3}\x{e2}][ \x{fffd}]"])


@functools.cache
def _re2(pattern: str) -> Any:
    import re2

    return re2.compile(pattern)


def _character_class(characters: Iterable[str]) -> str:
    return "".join(f"\\x{{{ord(c):x}}}" for c in sorted(set(characters) - {""}) if ord(c) > 127)
