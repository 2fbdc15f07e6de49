"""Map typographic spaces, hyphens, digits and full-width signs to ASCII, and positions back.

The patterns of personal data are written for ASCII. But typesetters separate groups of digits with
no-break and thin spaces, and Chinese, Japanese, Arabic and Hindi texts have digits of their own.
"""

from __future__ import annotations

import functools
import unicodedata
from bisect import bisect_right
from typing import Any, NamedTuple

_SPACES = r"\x{a0}\x{1680}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}"
# Includes the minus sign, because Japanese keyboards produce it.
_HYPHENS = r"\x{2010}-\x{2013}\x{2212}\x{fe63}"
# Without the colon and the comma: full-width ones end a label, and do not occur in a time, an
# address or a decimal.
_SIGNS = r"\x{ff08}\x{ff09}\x{ff0b}\x{ff0d}-\x{ff0f}\x{ff20}-\x{ff3a}\x{ff3f}\x{ff41}-\x{ff5a}"
_DIGITS = r"[^\x00-\x7f\P{Nd}]"  # decimal digits that are not ASCII


class Folds(NamedTuple):
    """Where `typed` replaced characters of a text.

    Attributes:
        ends: the byte position after each replacement in the new text, ascending.
        longer: how many bytes the old text was longer up to that position.
    """

    ends: list[int]
    longer: list[int]

    @classmethod
    def of(cls, data: bytes) -> Folds:
        """The folds of a UTF-8 text."""
        folds, longer = cls([], []), 0
        for match in _pattern().finditer(data):
            start, end = match.span()
            sign = len(_SIGNS_TYPED[ord(match[0].decode())].encode())
            folds.ends.append(start - longer + sign)
            longer += end - start - sign
            folds.longer.append(longer)
        return folds

    def before(self, place: int) -> int:
        """Map a byte position in the new text to the position in the old text."""
        count = bisect_right(self.ends, place)
        return place + self.longer[count - 1] if count else place


def typed(data: bytes) -> bytes:
    """UTF-8 text with typographic signs replaced; the same object if none is beside a digit."""
    if data.isascii() or not _gate().search(data):
        return data
    return data.decode().translate(_SIGNS_TYPED).encode()


@functools.cache
def _pattern() -> Any:
    """Matches every character that `typed` replaces."""
    import re2

    return re2.compile(f"[{_SPACES}{_HYPHENS}{_SIGNS}]|{_DIGITS}")


@functools.cache
def _gate() -> Any:
    """Matches text that may need a replacement: a sign beside a digit, or a digit.

    Prose is full of dashes and no-break spaces, and replacing them costs ten times the scan.
    """
    import re2

    space = f"[{_SPACES}{_HYPHENS}]"
    return re2.compile(f"[0-9)]{space}|{space}[0-9(+]|[{_SIGNS}]|{_DIGITS}")


class _Typed(dict[int, str]):
    """Code point -> its replacement, computed at the first lookup."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = _ascii(char) if code > 127 and _pattern().search(char.encode()) else char
        return self[code]


_SIGNS_TYPED = _Typed()


def _ascii(char: str) -> str:
    """The ASCII form of a character that `_pattern` matches."""
    match unicodedata.category(char):
        case "Zs":
            return " "
        case "Pd" | "Sm" if char != "\uff0b":
            return "-"
        case "Nd":
            return str(unicodedata.decimal(char))
    plain = unicodedata.normalize("NFKC", char)
    return plain if plain.isascii() else char  # a digit newer than this Python's Unicode
