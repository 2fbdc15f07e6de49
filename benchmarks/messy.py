"""A folder of messy sources, made of the text on this machine, and the truth about every document
in it.

    truths = build(folder, megabytes=200)

writes ``folder/sources``, ``folder/corpus.yaml`` for ``lit_llm corpus build --config`` and, a row a
document, ``folder/truth.jsonl``. Texts are pieces of the standard library, installed packages and
the system's documentation, translations of the Universal Declaration of Human Rights, and the check
set of personal data with other values.
"""

from __future__ import annotations

import json
import random
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import yaml

# What is planted here is what the blocks are tested with.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/corpus"))

import dedup
import messy_files
import pii_cases
from filters_texts import spoils
from planted import jaccard, mojibake

JUNK = ("repeated lines", "repeated words", "ellipses", "symbols", "numbers")  # the certain ones
LONGEST = 100_000  # bytes of a line that is taken from the source of bad files
BOILERPLATE = (
    "We use cookies and similar technologies to run this site and to understand how it is used. "
    "By going on you agree "
    "to our privacy policy and terms of use. You can change your settings at any time.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut "
    "labore et dolore.",
    "The page that you are looking for does not exist. It may have been moved, or there is a "
    "mistake in its address. "
    "Go back to the start, or look for what you need with the search field at the top of every "
    "page of this site.",
)
# Sentences without digits and "@": nothing in them is personal, so whatever is found between them
# was planted.
_PROSE = re.compile(r"[A-Z][^\d@{}=<>|\\_*`#~\[\]]{100,900}[.]")
# What files of these languages are in where they are not in UTF-8; and all of them in UTF-16.
ENCODINGS = {
    "cp1252": "de fr es it pt sv da fi", "cp1250": "pl cs hu", "cp1251": "ru uk bg",
    "koi8-r": "ru bg", "cp1253": "el", "cp1254": "tr", "cp1255": "he", "cp1256": "ar",
    "cp1257": "lt et", "tis-620": "th", "shift_jis": "ja", "euc-jp": "ja", "gb18030": "zh",
    "big5": "zh-Hant", "euc-kr": "ko",
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is known of a document.

    Attributes:
        id: as the corpus calls it; of "bad" ones a file's path below its source's folder, or a
            row's id.
        kind: "clean", "exact copy", "near copy", "junk", "boilerplate", "language", "mojibake",
            "personal", "page", "encoding", "huge line" or "bad".
        text: what a faultless pipeline would hold before redaction; None where it would hold none.
        of: the document it is a copy of.
        similarity: to that, exact Jaccard of sets of 5 words in a row.
        language: BCP 47.
        cases: of personal data and look-alikes, each a block of ``text`` between blank lines:
            (text, spans).
    """

    id: str
    kind: str
    text: str | None
    of: str | None = None
    similarity: float | None = None
    language: str | None = None
    cases: list[tuple[str, list[tuple[int, int, str]]]] = field(default_factory=list)


def build(folder: Path, megabytes: float, seed: int = 0) -> list[Truth]:
    """Write about ``megabytes`` (1e6) of text into a new ``folder``, and what is true of each
    document."""
    rng = random.Random(seed)
    declaration = Path(pii_cases.__file__).with_name("udhr.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in declaration.splitlines()]
    paragraphs = prose()
    truths: list[Truth] = []

    def put(source: str, planted: list[Truth], written: dict[str, str] | None = None) -> None:
        """As rows and files of a source; ``written``: by id, where that is not the true text."""
        truths.extend(planted)
        texts = written or {truth.id: truth.text or "" for truth in planted}
        messy_files.write_rows(folder / "sources" / source, texts, rng)

    put("languages", languages(rows))
    misread = {f"mojibake-{number}.txt": pair for number, pair in enumerate(mojibake(rows))}
    put(
        "mojibake",
        [Truth(name, "mojibake", text) for name, (text, *_) in misread.items()],
        {name: bad for name, (_, bad, *_) in misread.items()},
    )
    put("personal", personal(paragraphs, max(1, round(megabytes / 50)), rng))
    put("mixed", [*copies(megabytes * 0.93), *junk(megabytes * 0.08, rng), *boilerplate(megabytes)])
    truths += huge_lines(folder / "sources/mixed", max(100_000, round(megabytes * 20_000)))
    truths += encodings(folder / "sources/encodings", rows)
    truths += pages(folder / "sources/pages", paragraphs, megabytes * 0.06, rng)
    spoiled = next(row["text"] for row in rows if row["language"] == "ru")
    for number in range(max(1, round(megabytes / 10))):
        names = messy_files.write_bad(folder / "sources/bad", str(number), spoiled, LONGEST)
        truths += [Truth(name, "bad", None) for name in names]
    _write_config(folder)
    lines = (json.dumps(asdict(truth), ensure_ascii=False) for truth in truths)
    (folder / "truth.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return truths


def _write_config(folder: Path) -> None:
    # Languages first: of copies the first is kept, and these are looked at.
    names = sorted(
        (path.name for path in (folder / "sources").iterdir()),
        key=lambda name: (name != "languages", name),
    )
    sources = [{"name": name, "paths": str(folder / "sources" / name)} for name in names]
    for source in sources:
        if source["name"] == "bad":
            source["max_line_bytes"] = LONGEST
    (folder / "corpus.yaml").write_text(yaml.safe_dump({"sources": sources}))


def tidy(text: str) -> str:
    """In the spelling that normalisation makes, by Python's own means."""
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return unicodedata.normalize("NFC", re.sub("\n{3,}", "\n\n", lines).strip("\n")) + "\n"


def tidy_pieces() -> Iterator[str]:
    """Pieces of this machine's text, tidy, without those that hold control or invisible
    characters."""
    for text in map(tidy, dedup.pieces()):
        if text.translate(dict.fromkeys(map(ord, "\n\t\u00a0"))).isprintable():
            yield text


def prose() -> Iterator[str]:
    """Paragraphs of documentation, each once."""
    seen = set()
    for piece in tidy_pieces():
        for paragraph in piece.split("\n\n"):
            text = " ".join(paragraph.split())
            if _PROSE.fullmatch(text) and text not in seen:
                seen.add(text)
                yield text


def languages(rows: list[dict[str, str]]) -> list[Truth]:
    """Paragraphs in 35 languages."""
    return [
        Truth(f"language-{number}.txt", "language", row["text"], language=row["language"])
        for number, row in enumerate(rows)
    ]


def encodings(folder: Path, rows: list[dict[str, str]]) -> list[Truth]:
    """Writes files of three paragraphs in encodings that are not UTF-8."""
    folder.mkdir(parents=True)
    spoken: dict[str, list[str]] = {}
    for row in rows:
        spoken.setdefault(row["language"], []).append(row["text"])
    truths = []
    for encoding, tags in [*ENCODINGS.items(), ("utf-16", " ".join(spoken))]:
        for tag in tags.split():
            for start in range(0, len(spoken[tag]), 3):
                text = "\n".join(spoken[tag][start : start + 3])
                try:
                    data = text.encode(encoding)
                except UnicodeEncodeError:
                    continue
                name = f"{encoding}-{tag}-{start}.txt"
                (folder / name).write_bytes(data)
                truths.append(Truth(name, "encoding", text))
    return truths


def personal(paragraphs: Iterator[str], rounds: int, rng: random.Random) -> list[Truth]:
    """Cases of the check set of personal data, three a document, between paragraphs in which there
    is nothing personal.

    Values are other ones than in tests/corpus/pii_cases.jsonl, which the patterns have met.
    """
    cases = [pii_cases.parse(row) for seed in range(rounds) for row in pii_cases.generate(seed)]
    rng.shuffle(cases)
    truths = []
    for start in range(0, len(cases), 3):
        some = cases[start : start + 3]
        blocks = [block for case in some for block in (next(paragraphs), case.text)] + [
            next(paragraphs)
        ]
        found = [(case.text, case.spans) for case in some]
        truths.append(
            Truth(f"personal-{start // 3}.txt", "personal", "\n\n".join(blocks), cases=found)
        )
    return truths


def copies(megabytes: float) -> list[Truth]:
    """Pieces, exact copies of some, and copies of others of which 2 to 5% of the words are
    edited."""
    texts, exact, near = dedup.documents(megabytes, tidy_pieces())
    truths = []
    texts |= {name: tidy(texts[name]) for name in near}
    for name, text in texts.items():
        of = exact.get(name) or near.get(name)
        kind = "exact copy" if name in exact else "near copy" if name in near else "clean"
        similarity = jaccard(text, texts[of]) if of else None
        truths.append(Truth(f"{name}.txt", kind, text, of and f"{of}.txt", similarity))
    return truths


def junk(megabytes: float, rng: random.Random) -> list[Truth]:
    """Pieces spoiled in ways that no reader would want."""
    truths: list[Truth] = []
    size = 0
    for number, piece in enumerate(tidy_pieces()):
        if size >= megabytes * 1e6:
            break
        text = spoils(piece, rng)[JUNK[number % len(JUNK)]]()
        size += len(text.encode())
        truths.append(Truth(f"junk-{number}.txt", "junk", text))
    return truths


def boilerplate(megabytes: float) -> list[Truth]:
    """The same three notices again and again."""
    times = range(3 + round(megabytes))
    return [
        Truth(f"notice-{i}-{n}.txt", "boilerplate", text)
        for i, text in enumerate(BOILERPLATE)
        for n in times
    ]


def huge_lines(folder: Path, size: int) -> list[Truth]:
    """Writes a file of ``size`` characters without a newline, of other words than any other
    document's."""
    text = " ".join(f"{number:x}th" for number in range(size))[:size]
    (folder / "huge-line.txt").write_text(text)
    return [Truth("huge-line.txt", "huge line", text)]


def pages(
    folder: Path, paragraphs: Iterator[str], megabytes: float, rng: random.Random
) -> list[Truth]:
    """Writes pages of three to eight paragraphs, as HTML files and in web archives, as long as
    there are paragraphs."""
    made: list[list[str]] = []
    size = 0
    while size < megabytes * 1e6 and (page := list(islice(paragraphs, rng.randint(3, 8)))):
        made.append([" ".join(page[0].split()[:6]), *page])
        size += sum(map(len, page))
    ids = messy_files.write_pages(folder, made, rng)
    return [Truth(id, "page", "\n\n".join(page)) for id, page in zip(ids, made, strict=True)]
