"""Is what `lit_llm corpus build` makes of a messy folder right? Against planted truth, and how
fast?

    python benchmarks/corpus_truth.py [--megabytes 200] [--workers 2]

Builds the folder of messy.py, runs the command on it in a process of its own with its default
settings, reads the kept and dropped documents that it wrote, and prints each figure beside its
goal. Ends with status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import messy  # before what it puts on the path
import pii_cases
import pyarrow.parquet as pq
import resident
from messy import Truth
from planted import jaccard
from record import write_result

from lit_llm.corpus.privacy.personal_data import KINDS

_PLACEHOLDER = re.compile(f"<({'|'.join(kind.upper() for kind in KINDS)})>")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<": operator.lt,
    "=": operator.eq,
}


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        name: what is measured.
        value: a share, or what ``name`` says.
        of: how many were looked at.
        goal: such as ">= 0.90"; None where there is none.
    """

    name: str
    value: float
    of: int
    goal: str | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is, or there is none. Of nothing there is no share."""
        if self.goal is None:
            return True
        sign, limit = self.goal.split()
        return self.of > 0 and _COMPARE[sign](self.value, float(limit))


@dataclass(frozen=True)
class Fate:
    """What became of a document: a row of the corpus's documents or dropped files; nothing, if it
    has none."""

    text: str | None = None
    sha256: str | None = None
    language: str | None = None
    duplicate_of: str | None = None

    @property
    def compared(self) -> bool:
        """Whether deduplication saw it."""
        return self.text is not None or self.duplicate_of is not None


def run(folder: Path, workers: int) -> tuple[float, int]:
    """The command on a folder of `messy.build`: seconds, and bytes that its processes held at
    most."""
    command = [
        sys.executable,
        "-m",
        "lit_llm",
        "corpus",
        "build",
        "--config",
        str(folder / "corpus.yaml"),
    ]
    command += ["--output", str(folder / "corpus"), "--workers", str(workers)]
    started = time.perf_counter()
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        most = resident.watch(process)
    if process.returncode:
        raise SystemExit(
            f"lit_llm corpus build ended with status {process.returncode}: "
            f"{(folder / 'log').read_text()}"
        )
    return time.perf_counter() - started, most


def fates(corpus: Path) -> tuple[dict[str, Fate], Counter[str]]:
    """Each document's fate by id, and how many rows each id has."""
    found: dict[str, Fate] = defaultdict(Fate)
    rows: Counter[str] = Counter()
    columns = {"documents": ["text", "sha256", "language"], "dropped": ["sha256", "duplicate_of"]}
    for name, read in columns.items():
        for row in pq.read_table(corpus / name, columns=["id", *read]).to_pylist():
            id = row.pop("id")
            found[id] = Fate(**row)
            rows[id] += 1
    return found, rows


def measure(folder: Path, truths: list[Truth]) -> list[Figure]:
    """The figures of the corpus that `run` made in ``folder``."""
    found, rows = fates(folder / "corpus")
    planted = [truth for truth in truths if truth.kind != "bad"]
    compared = {truth.id: truth.text or "" for truth in planted if found[truth.id].compared}
    return [
        *_duplicates(planted, found, compared),
        *_personal([truth for truth in planted if truth.kind == "personal"], found),
        *_restored(planted, found),
        *_clean(planted, found),
        _share(
            "junk dropped",
            (found[truth.id].text is None for truth in planted if truth.kind == "junk"),
            ">= 0.95",
        ),
        _bad(folder / "corpus", [truth.id for truth in truths if truth.kind == "bad"]),
        _share(
            "documents that are kept or dropped, once",
            (rows[truth.id] == 1 for truth in planted),
            "= 1",
        ),
    ]


def _share(name: str, right: Iterable[bool], goal: str) -> Figure:
    verdicts = list(right)
    return Figure(name, sum(verdicts) / max(1, len(verdicts)), len(verdicts), goal)


def _duplicates(
    planted: list[Truth], found: dict[str, Fate], compared: dict[str, str]
) -> list[Figure]:
    """Exact copies are all documents whose words are equal, planted or not; similarity is counted
    out for each drop.

    Documents that were spoiled are left out of the exact ones: their text depends on how well they
    came back.
    """
    spoiled = {truth.id for truth in planted if truth.kind in ("mojibake", "encoding", "page")}
    groups: dict[str, list[str]] = {}
    for id, text in compared.items():
        if id not in spoiled:
            groups.setdefault(" ".join(text.lower().split()), []).append(id)
    again = [group for group in groups.values() if len(group) > 1]
    copies = sum(len(group) - 1 for group in again)
    gone = sum(min(len(group) - 1, sum(found[id].text is None for id in group)) for group in again)
    near = [
        truth
        for truth in planted
        if truth.kind == "near copy" and truth.id in compared and truth.of in compared
    ]
    drops = [
        (text, compared.get(of, ""))
        for id, text in compared.items()
        if (of := found[id].duplicate_of)
    ]
    return [
        Figure("exact copies dropped", gone / max(1, copies), copies, "= 1"),
        _share(
            "near copies (2 to 5% of words edited) dropped",
            (any(found[id].text is None for id in (truth.id, truth.of or "")) for truth in near),
            ">= 0.90",
        ),
        _share("of copies dropped, 5-gram Jaccard >= 0.5",
               (jaccard(*pair) >= 0.5 for pair in drops), ">= 0.95"),
    ]  # fmt: skip


def _personal(planted: list[Truth], found: dict[str, Fate]) -> list[Figure]:
    hit, missed, wrong = 0, 0, 0
    for truth in planted:
        text = found[truth.id].text
        if text is None or truth.text is None:
            continue
        for (original, spans), redacted in zip(
            truth.cases, text.rstrip("\n").split("\n\n")[1::2], strict=True
        ):
            got = redactions(original, redacted) or []
            want = {pii_cases.core(original, *span) for span in spans}
            have = {pii_cases.core(original, *span) for span in got}
            hit, missed, wrong = (
                hit + len(want & have),
                missed + len(want - have),
                wrong + len(have - want),
            )
    return [
        Figure("personal data found", hit / max(1, hit + missed), hit + missed, ">= 0.98"),
        Figure("of redactions, right", hit / max(1, hit + wrong), hit + wrong, ">= 0.95"),
    ]


def redactions(original: str, redacted: str) -> list[tuple[int, int, str]] | None:
    """(start, end, kind) of what placeholders stand for; None if ``redacted`` differs in something
    else."""
    literals = _PLACEHOLDER.split(redacted)
    kinds, literals = literals[1::2], literals[::2]
    if not kinds:
        return [] if original == redacted else None
    if not original.startswith(literals[0]):
        return None
    at, spans = len(literals[0]), []
    for kind, literal in zip(kinds[:-1], literals[1:-1], strict=True):
        end = original.find(literal, at + 1)
        if end < 0:
            return None
        spans.append((at, end, kind.lower()))
        at = end + len(literal)
    end = len(original) - len(literals[-1])
    if end <= at or not original.endswith(literals[-1]):
        return None
    return [*spans, (at, end, kinds[-1].lower())]


def _restored(planted: list[Truth], found: dict[str, Fate]) -> list[Figure]:
    """By the digest of what a document was in the end, which dropped copies have too."""

    def exact(kind: str) -> Iterable[bool]:
        for truth in planted:
            if truth.kind == kind:
                yield found[truth.id].sha256 == sha256((truth.text or "").encode()).hexdigest()

    return [
        _share("mojibake restored exactly", exact("mojibake"), ">= 0.80"),
        _share("other encodings than UTF-8 read exactly", exact("encoding"), ">= 0.95"),
    ]


def _clean(planted: list[Truth], found: dict[str, Fate]) -> list[Figure]:
    kept = [(truth, fate) for truth in planted if (fate := found[truth.id]).text is not None]
    clean = [
        redactions(truth.text or "", fate.text or "") is None
        for truth, fate in kept if truth.kind in (
            "clean", "exact copy", "near copy", "language", "personal"
        )
    ]  # fmt: skip
    spoken = [(truth.language, fate.language) for truth, fate in kept if truth.kind == "language"]
    words = (
        (truth.text or "").split() == (fate.text or "").split()
        for truth, fate in kept
        if truth.kind == "page"
    )
    languages = len({language for language, _ in spoken})
    return [
        Figure(
            "clean texts changed, but for redactions",
            sum(clean) / max(1, len(clean)),
            len(clean),
            "< 0.001",
        ),
        _share("pages' main text exact", words, ">= 0.95"),
        _share(f"languages right, of {languages}", (a == b for a, b in spoken), ">= 0.98"),
    ]


def _bad(corpus: Path, names: list[str]) -> Figure:
    """Whether a row says of each that it could not be read, and the data card's count is that of
    such rows."""
    dropped = pq.read_table(corpus / "dropped", columns=["id", "path", "stage"]).to_pylist()
    read = [row for row in dropped if row["stage"] == "read"]
    card = json.loads((corpus / "datacard.json").read_text())
    counted = sum(count for reason, count in card["dropped"].items() if reason.startswith("read: "))
    told = {row["id"] for row in read} | {"/".join(row["path"].split("/")[-2:]) for row in read}
    return _share(
        "bad files and rows named and counted",
        (counted == len(read) and name in told for name in names),
        "= 1",
    )


def table(figures: list[Figure]) -> str:
    """For people."""
    lines = [f"{'':46} {'figure':>9} {'of':>8}  {'goal':9}"]
    for figure in figures:
        said = "" if figure.goal is None else "PASS" if figure.met else "FAIL"
        value = f"{figure.value:9.4f}" if figure.goal else f"{figure.value:9.1f}"
        lines.append(f"{figure.name:46} {value} {figure.of or '':>8}  {figure.goal or '':9} {said}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truths = messy.build(folder, args.megabytes, args.seed)
        size = sum(len((truth.text or "").encode()) for truth in truths)
        seconds, held = run(folder, args.workers)
        read = json.loads((folder / "corpus/datacard.json").read_text())
        figures = measure(folder, truths)
    figures.append(Figure("MB of text a second, files to shards", size / 1e6 / seconds, 0))
    figures.append(Figure("MB held at most, all processes", held / 1e6, 0))
    print(table(figures))
    result = {
        "megabytes": size / 1e6, "documents": dict(Counter(truth.kind for truth in truths)),
        "workers": args.workers, "seconds": seconds, "dropped": read["dropped"],
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }  # fmt: skip
    print(f"wrote {write_result('corpus_truth', result)}")
    sys.exit(not all(figure.met for figure in figures))


if __name__ == "__main__":
    main()
