"""Repair texts with small defects: bad bytes, NULs, half surrogate pairs.

A file of a megabyte should not be lost because of one byte. A text with more than one defect in a
thousand characters is not text, or is in another encoding.
"""

from __future__ import annotations

import re

BAD_BYTES = "bad bytes replaced"
NULS = "NULs taken out"
HALVES = "half surrogates replaced"
# Characters. A shorter text without any good character beyond ASCII may be in an 8-bit encoding,
# as "café" in Latin-1.
LEAST_TO_JUDGE = 64
_GOOD_FOR_A_BAD_ONE = 1000  # characters
# A cut character of UTF-8 leaves up to three bytes.
_LONE = re.compile("[\udc80-\udcff]{1,3}|[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")


def bearable(bad: int, length: int) -> bool:
    """Whether ``bad`` of ``length`` characters are few enough to replace: one, or one in 1,000."""
    return bad <= max(1, length // _GOOD_FOR_A_BAD_ONE)


def repair(text: str) -> tuple[str, str | None, str | None]:
    """Return (text that UTF-8 can hold, what was repaired, None), or ("", None, reason).

    Args:
        text: as JSON spells it, or decoded with "surrogateescape": bytes that are not UTF-8 are
            U+DC80 to U+DCFF.
    """
    repaired = []
    if "\0" in text:
        if not bearable(text.count("\0"), len(text)):
            return "", None, "binary"
        text = text.replace("\0", "")
        repaired.append(NULS)
    try:
        text.encode()
    except UnicodeEncodeError:
        # A pair that was written as two halves is one character.
        text = _pairs(text)
        if lone := _LONE.findall(text):
            escaped = all("\udc80" <= half <= "\udcff" for half in "".join(lone))
            good = _HALF.sub("", text)
            if not bearable(len(lone), len(text)) or not good.strip():
                return "", None, "not UTF-8"
            if escaped and len(good) < LEAST_TO_JUDGE and good.isascii():
                return "", None, "not UTF-8"
            text = _LONE.sub("\ufffd", text)
            repaired.append(BAD_BYTES if escaped else HALVES)
    return text, " and ".join(repaired) or None, None


def _pairs(text: str) -> str:
    """Join adjacent halves of surrogate pairs to characters."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
