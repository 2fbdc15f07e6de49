"""Normalise text: Unicode NFC, repair of mojibake, no stray control characters, tidy white space.

    Normalize().texts(["cafÃ©\\r\\n"])  # ["café\\n"]

Most text needs no change. One scan by RE2 over Arrow's buffers finds the documents that might need
one. Pure ASCII without a match is done; other documents are checked for NFC.
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
# Characters without meaning for a reader: byte order marks, soft hyphens, word joiners, invisible
# operators, bidirectional embeddings and overrides (which can also show text in another order than
# it is stored), annotation anchors.
_INVISIBLE = re.compile("[\ufeff\u00ad\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
# A joiner changes the word or picture after a letter of a joining script or after an emoji. After
# Latin, Greek and Cyrillic letters it has no effect. South-East Asian scripts separate words by
# zero-width spaces, so these stay after their letters.
_JOINERS = re.compile("(?:^|(?<=[\x00-\u058f\u2000-\u200b]))[\u200c\u200d]+", re.M)
_ZERO_WIDTH_SPACES = re.compile(
    "(?:^|(?<=[^\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]))\u200b+", re.M
)
_BLANKS = (
    " \t\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u202f\u205f\u3000"
)
_BLANK_LINES = re.compile("\n{3,}")
# Pattern for RE2 of all characters that the patterns above may change. White space beyond ASCII
# counts only at the end of a line.
_DIRTY = (
    r"[\x00-\x08\x0e-\x1f\x7f-\x{9f}\x{ad}\x{feff}\x{2060}-\x{2064}\x{202a}-\x{202e}"
    r"\x{2066}-\x{2069}\x{fff9}-\x{fffb}"
    r"\r\x{2028}\x{2029}\x{200b}-\x{200d}]"
)
_TRAILING = r"[ \t\x{a0}\x{1680}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}](?:\n|\z)"
_UNTIDY = rf"|[\v\f]|{_TRAILING}|\A\n|\n\n\n|\n\n\z"


@dataclass(frozen=True)
class Normalize(Block):
    """Normalise "text". Normalised documents do not change; if all are, the array is the same.

    Attributes:
        code: keep white space as it is, except line ends, because it has a meaning in source code.
    """

    name = "normalize"
    code: bool = False

    def apply(self, table: pa.Table) -> pa.Table:
        """Replace "text"."""
        text = texts(table["text"])
        pattern = f"{_DIRTY}|{mojibake_gate()}" + ("" if self.code else _UNTIDY)
        dirty = pc.match_substring_regex(text, pattern)
        ascii_only = pc.equal(pc.binary_length(text), pc.utf8_length(text))
        # ASCII text is always NFC.
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
        """Normalise one text.

        Removing a character can join its neighbours, so this repeats until nothing changes.
        """
        while (after := self._once(text)) != text:
            text = after
        return text

    def _once(self, text: str) -> str:
        text = undo_mojibake(text)
        if not self.code:
            text = text.replace("\v", "\n").replace("\f", "\n")
        # Python's `re` scans about 10 MB/s even without a match; RE2 finds out at 250 MB/s whether
        # there is one.
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
    """Repair lines that were decoded with the wrong encoding, by ftfy.

    A line is repaired if ftfy's `badness.is_bad` says so. Each line is judged alone, since a
    document may consist of good and bad parts.
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
    """Return a pattern for RE2 that matches any UTF-8 text read in one of ftfy's encodings.

    Such text has a character of the bytes 0xC2 to 0xF4 followed by one of 0x80 to 0xBF. In
    encodings whose letters at these bytes are common neighbours (Cyrillic, Greek), two such pairs
    are required, or one beside a Latin letter. ftfy's own test reads 2 MB/s.
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
    # Two typical losses: the byte 0xA0 was turned into a space, another byte into U+FFFD.
    return "|".join([*dict.fromkeys(pairs), r"[\x{c3}\x{e2}][ \x{fffd}]"])


@functools.cache
def _re2(pattern: str) -> Any:
    import re2

    return re2.compile(pattern)


def _character_class(characters: Iterable[str]) -> str:
    return "".join(f"\\x{{{ord(c):x}}}" for c in sorted(set(characters) - {""}) if ord(c) > 127)
