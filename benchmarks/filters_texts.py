"""Real texts of this machine and junk made of them, for benchmarks/filters.py and messy.py."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

SUFFIXES = {".txt", ".md", ".rst", ".py", ".html", ".htm", ""}
NAMES = {
    "METADATA",
    "README",
    "LICENSE",
    "NOTICE",
    "copyright",
    "changelog",
    "NEWS",
    "COPYING",
    "AUTHORS",
}
LARGEST = 400_000  # bytes
_CHINESE = "北京大学是中国的。一个学校，我们在这里学习！ \n"  # noqa: RUF001


def readable(folder: Path) -> list[Path]:
    """Files that look like text."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in SUFFIXES and (file.suffix or file.name in NAMES) and file.is_file()
    ]


def read(file: Path) -> str:
    """The text as it is, or the main text of an HTML page; empty if it cannot be read."""
    from resiliparse.extract.html2text import extract_plain_text

    try:
        text = file.read_bytes()[:LARGEST].decode("utf-8", "ignore")
    except OSError:
        return ""
    if file.suffix in (".html", ".htm"):
        return extract_plain_text(text, main_content=True, preserve_formatting=True)
    return text


def spoils(text: str, rng: random.Random) -> dict[str, Callable[[], str]]:
    """Ways to spoil the text that the rules are there for."""
    lines = [line for line in text.splitlines() if line.strip()] or ["x"]
    words = text.split()[:3000] or ["x"]
    some = " ".join(rng.sample(words, min(len(words), 8)))
    part = lines[: rng.randrange(2, 60)]
    return {
        "repeated lines": lambda: "\n".join(part * rng.randrange(2, 6)),
        "drawn lines": lambda: "\n\n".join(rng.choices(part, k=len(part))),
        "a line again and again": lambda: "\n".join(
            line if rng.random() < 0.7 else part[0] for line in lines
        ),
        "repeated words": lambda: " ".join([some] * rng.randrange(5, 60)),
        "repeated words at the end": lambda: " ".join(words + [some] * rng.randrange(1, 20)),
        "bullets": lambda: "\n".join(f"{rng.choice('-•*')} {line.strip()}" for line in part),
        "ellipses": lambda: "\n".join(
            line + rng.choice(["...", "…", " ...", "."]) for line in part
        ),
        "a word a line": lambda: "\n".join(words[: rng.randrange(5, 200)]),
        "symbols": lambda: " ".join(word + rng.choice(["#", " #", "", "", "…"]) for word in words),
        "word salad": lambda: " ".join(rng.sample(words, len(words)))[: rng.randrange(10, 2000)],
        "numbers": lambda: " ".join(
            str(rng.randrange(10**6)) for _ in range(rng.randrange(5, 300))
        ),
        "a beginning": lambda: text[: rng.randrange(1, 400)],
        "short lines": lambda: text.replace(". ", ".\n").replace(
            "the ", rng.choice(["the ", "die ", "[1] the "])
        ),
        "a notice": lambda: text + "\n" + rng.choice(["Lorem ipsum dolor sit.", "Please enable "
                                                                                "JavaScript now.",
                                                      "if (x) { y.", "We use cookies to serve "
                                                                     "you."]),
        "Chinese": lambda: "".join(rng.choices(_CHINESE, k=rng.randrange(20, 800))),
        "no-break spaces": lambda: text.replace(" ", "\u00a0")[:5000],
        "CRLF": lambda: text[:3000].replace("\n", "\r\n"),
    }  # fmt: skip


def junk(text: str, rng: random.Random) -> str:
    """The text spoiled in one of these ways."""
    return rng.choice(list(spoils(text, rng).values()))()


def default_folders() -> list[Path]:
    """Standard library, installed packages, the system's documentation."""
    paths = [sysconfig.get_path("stdlib"), "/usr/share/doc"]
    return [Path(path) for path in paths if Path(path).is_dir()]


def texts(megabytes: float, folders: list[Path], seed: int = 0) -> list[str]:
    """About ``megabytes`` (1e6) of them, a third of the documents junk, in random order."""
    rng = random.Random(seed)
    files = [file for folder in folders for file in readable(folder)]
    rng.shuffle(files)
    chosen: dict[str, None] = {}
    size = 0
    for file in files:
        text = read(file)
        if rng.random() < 1 / 3:
            text = junk(text, rng)
        if text not in chosen:
            chosen[text] = None
            size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return list(chosen)
