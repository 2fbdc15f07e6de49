"""Texts with little that is wrong: bytes of no character, NULs, halves of surrogate pairs.

A file of a megabyte is not lost for one byte. What has more of them than one in a thousand
characters is no text, or in another encoding.
"""

from __future__ import annotations

import re

BAD_BYTES = "bad bytes replaced"
NULS = "NULs taken out"
HALVES = "half surrogates replaced"
# A shorter text without any good character beyond ASCII may as well be in an 8-bit encoding: "café"
# in Latin-1.
LEAST_TO_JUDGE = 64
_GOOD_FOR_A_BAD_ONE = 1000  # characters
# What is left of one character of UTF-8 is up to three bytes.
_LONE = re.compile("[\udc80-\udcff]{1,3}|[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")


def bearable(bad: int, length: int) -> bool:
    """Whether ``bad`` characters of ``length`` are few enough to be replaced: one, or one in a
    thousand."""
    return bad <= max(1, length // _GOOD_FOR_A_BAD_ONE)


def repair(text: str) -> tuple[str, str | None, str | None]:
    """(text that UTF-8 can hold, what was repaired, None), or ("", None, why it is beyond repair).

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
        # A pair that was spelled in halves is a character.
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
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
