"""Planted duplicates and their true similarity by brute force, mojibake, records of a WARC."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Iterator

_WORDS = [
    a + b + c
    for a in ("ba", "ke", "lo", "mi", "ru")
    for b in ("n", "st", "r", "")
    for c in ("a", "ed", "ing", "o")
]


def sentence(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(_WORDS) + draw.choice(("", "", "", ",", ".")) for _ in range(words)]


def edited(words: list[str], share: float, draw: random.Random) -> list[str]:
    """A copy with that share of its words replaced, left out or doubled."""
    words = list(words)
    for at in sorted(draw.sample(range(len(words)), round(share * len(words))), reverse=True):
        words[at : at + 1] = draw.choice(([draw.choice(_WORDS) + "x"], [], [words[at], words[at]]))
    return words


def ngrams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """Word n-grams, found another way than by the kernel's table."""
    bare = "".join(
        c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn"
    )
    words = re.findall(r"[^\W_]+", bare)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a: str, b: str) -> float:
    first, second = ngrams(a), ngrams(b)
    return len(first & second) / len(first | second) if first or second else 0.0


# What reads UTF-8 wrongly in practice: Western systems everything, Central European and Cyrillic
# ones their own.
WRONGLY = {
    "latin-1": {"de", "fr", "es", "pt", "sv", "da", "fi", "ru", "el", "ja", "zh", "hi", "ar"},
    "cp1252": {
        "de",
        "fr",
        "es",
        "it",
        "pt",
        "nl",
        "sv",
        "da",
        "pl",
        "cs",
        "tr",
        "vi",
        "uk",
        "el",
        "ja",
        "ko",
        "th",
    },
    "cp1250": {"pl", "cs", "hu", "ro", "de"},
    "cp1251": {"ru", "uk", "bg"},
}


def misread(text: str, encoding: str) -> str:
    """UTF-8 bytes read as ``encoding``; bytes it has no character for are kept as C1 controls, as
    browsers do."""
    return "".join(
        bytes([b]).decode(encoding) if can(b, encoding) else chr(b) for b in text.encode()
    )


def can(byte: int, encoding: str) -> bool:
    try:
        return bool(bytes([byte]).decode(encoding))
    except UnicodeDecodeError:
        return False


def mojibake(paragraphs: Iterable[dict[str, str]]) -> Iterator[tuple[str, str, str, int]]:
    """(text, the same misread, as what, how often) of rows with "text" and "language", as it
    happens to each."""
    rows = [row for row in paragraphs if not row["text"].isascii()]
    for encoding, languages in WRONGLY.items():
        for text in (row["text"] for row in rows if row["language"] in languages):
            once = misread(text, encoding)
            yield text, once, encoding, 1
            yield text, misread(once, encoding), encoding, 2


def response(
    url: str, body: bytes, kind: str = "text/html", headers: str = "", status: str = "200 OK"
) -> bytes:
    """A record of a WARC: what a server answered for ``url``."""
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}\r\n".encode() + body
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{len(url):032x}>\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"
