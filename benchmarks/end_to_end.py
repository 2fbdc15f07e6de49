"""Compressed JSONL to token shards against datatrove: how fast, how much memory, and are the same
documents kept?

    make peers
    python benchmarks/end_to_end.py [--megabytes 40] [--rounds 3] [--dry-run]  # 4 to 5 minutes

Both read the same JSONL.gz files on all cores, apply Gopher's two rule sets, C4's and FineWeb's
with the word splitter that we ship, find near-duplicates by 14 x 8 MinHashes of 5-grams, and write
shards by the same tokenizer. datatrove does it in the fewest stages it can: filters and signatures
in one, and the last one tokenises. Ours is `corpus.build` on a configuration, data card and tables
of kept and dropped documents included; once more as ``corpus/web`` has it, with normalisation,
languages, licences and personal data. They take turns, each run is a process of its own, and its
seconds are the whole life of that process, imports too. Afterwards our build, by processes as for
much text, runs on it and on four times as much: memory, all processes added, must not grow with it.

Documents: pages of sentences from the documentation in Python files of this machine, mixed with
pieces of files as they are, so that about half is kept, as of the web; 15% are copies, two thirds
of them with 2 to 5% of the words edited.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import resident
from dedup import DATATROVE_PYTHON, documents, pieces
from record import write_result

CORES = os.cpu_count() or 1
DATATROVE, SAME, WEB, PROCESSES = "datatrove", "ours", "ours, corpus/web", "ours, by processes"
FILE_BYTES = 3_000_000  # of text in a file
BOUND = 1.25  # times the peak at a fourth of the text
VOCABULARY = 8192
_STRING = re.compile(r'"""(.*?)"""', re.S)
_SENTENCE = re.compile(r"[A-Z][a-z]*(?: [A-Za-z][a-z'-]*,?){5,40}\.")


def pages() -> Iterator[str]:
    """Pages without end, 10 to 60 sentences drawn from all, three a line; behind every other a raw
    piece."""
    found: set[str] = set()
    for file in Path(sysconfig.get_path("purelib")).rglob("*.py"):
        try:
            said = " ".join(_STRING.findall(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            continue
        found.update(_SENTENCE.findall(" ".join(said.split())))
    sentences, draw, raw = sorted(found), random.Random(2), pieces()
    while True:
        page = draw.sample(sentences, draw.randint(10, 60))
        yield "\n".join(" ".join(page[i : i + 3]) for i in range(0, len(page), 3))
        if draw.random() < 0.5:
            yield from itertools.islice(raw, 1)


def write_files(texts: dict[str, str], folder: Path) -> list[Path]:
    """The documents as JSONL.gz files of about ``FILE_BYTES`` of text."""
    folder.mkdir()
    lines: list[list[str]] = [[]]
    size = 0
    for name, text in texts.items():
        if size > FILE_BYTES:
            lines.append([])
            size = 0
        lines[-1].append(json.dumps({"id": name, "text": text}) + "\n")
        size += len(text.encode())
    files = [folder / f"{number:05}.jsonl.gz" for number in range(len(lines))]
    for file, part in zip(files, lines, strict=True):
        file.write_bytes(gzip.compress("".join(part).encode(), 6))
    return files


def theirs(text: Path, tokenizer: Path, out: Path) -> None:
    """datatrove's stages."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer
    from datatrove_words import OurWords, use
    from loguru import logger

    logger.remove()
    words = OurWords()
    use(lambda language: words)
    config = MinhashConfig()
    filters = [
        GopherRepetitionFilter(),
        C4QualityFilter(),
        GopherQualityFilter(),
        FineWebQualityFilter(),
    ]
    sign = MinhashDedupSignature(str(out / "signatures"), config)
    sign.word_tokenizer = (
        WhitespaceTokenizer()
    )  # of what is left without punctuation: as ours, and faster
    tokenize = DocumentTokenizer(
        str(out / "shards"), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
        eos_token="<|endoftext|>", shuffle_documents=False
    )  # fmt: skip
    stages: tuple[tuple[list[Any], int], ...] = (
        (
            [
                JsonlReader(str(text)),
                *filters,
                JsonlWriter(str(out / "kept"), compression=None),
                sign,
            ],
            CORES,
        ),
        (
            [MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)],
            config.num_buckets,
        ),
        ([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config)], 1),
        (
            [JsonlReader(str(out / "kept")), MinhashDedupFilter(str(out / "remove")), tokenize],
            CORES,
        ),
    )
    for number, (stage, tasks) in enumerate(stages):
        logs = str(out / f"log-{number}")
        LocalPipelineExecutor(
            stage, tasks=tasks, workers=CORES, logging_dir=logs, start_method="fork"
        ).run()


def verdicts_of_datatrove(out: Path) -> tuple[set[str], set[str], int]:
    """Ids that passed the rules; of these what is left without duplicates; its tokens."""
    passed: set[str] = set()
    kept: set[str] = set()
    for file in sorted((out / "kept").glob("*.jsonl")):
        names = [
            json.loads(line)["id"] for line in file.read_text(encoding="utf-8").split("\n") if line
        ]
        removed = out / "remove" / f"{int(file.stem):06d}.remove"
        gone = set(memoryview(removed.read_bytes()).cast("I")) if removed.is_file() else set()
        passed.update(names)
        kept.update(name for row, name in enumerate(names) if row not in gone)
    return passed, kept, sum(file.stat().st_size // 2 for file in (out / "shards").glob("*.ds"))


def ours(which: str, text: Path, tokenizer: Path, out: Path) -> None:
    """Our build."""
    from lit_llm.corpus import pipeline
    from lit_llm.corpus.build import build
    from lit_llm.corpus.commands.config_parser import parse_build
    from lit_llm.corpus.config import CorpusConfig
    from lit_llm.corpus.dedup.duplicates import Dedup
    from lit_llm.corpus.filters.quality import C4Quality, FineWebQuality, GopherQuality
    from lit_llm.corpus.reading.sources import Source

    if which == WEB:
        arguments = ["--config", "corpus/web", "--input", f"{text}/*", "--output", str(out)]
        build(*parse_build([*arguments, "--tokenizer", str(tokenizer)]), progress=False)
        return
    if which == PROCESSES:
        # Below this size threads clean the text, and threads share what each process holds.
        pipeline._FEW_BYTES = 0
    config = CorpusConfig(
        sources=[Source("text", f"{text}/*")], normalize=None, opt_out=None, language=None,
        privacy=None, license=None, gopher_quality=GopherQuality(), c4=C4Quality(),
        fineweb=FineWebQuality(), dedup=Dedup(bands=14, rows=8), tokenizer=str(tokenizer),
        validation_fraction=0,
    )  # fmt: skip
    build(config, out, progress=False)


def our_verdicts(out: Path) -> tuple[set[str], set[str], int]:
    """As `verdicts_of_datatrove`."""
    import pyarrow.compute as pc
    import pyarrow.dataset

    kept = pyarrow.dataset.dataset(out / "documents").to_table(columns=["id", "tokens"])
    gone = pyarrow.dataset.dataset(out / "dropped").to_table(
        columns=["id"], filter=pc.field("reason") == "duplicate"
    )
    names = set(kept["id"].to_pylist())
    return names | set(gone["id"].to_pylist()), names, sum(kept["tokens"].to_pylist())


def run(which: str, python: str, text: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    """One contender in a process of its own: seconds by the clock and of processors, and bytes held
    at most."""
    shutil.rmtree(out, ignore_errors=True)
    command = [python, __file__, "--child", which, str(text), str(tokenizer), str(out)]
    root = Path(__file__).resolve().parents[1]
    # Bytecode is kept, as it is where people install packages; some machines' settings would
    # compile it in each run.
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONPYCACHEPREFIX": str(out.parent / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile() as said:
        began, used = time.perf_counter(), _processor_seconds()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        most = resident.watch(process)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{which}: {said.read().decode()[-2000:]}")
    return {"seconds": seconds, "cpu_seconds": _processor_seconds() - used, "peak_bytes": most}


def _processor_seconds() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _first(texts: dict[str, str], megabytes: float) -> dict[str, str]:
    """As many of them as make ``megabytes``."""
    ends = itertools.accumulate(len(text.encode()) for text in texts.values())
    return dict(itertools.islice(texts.items(), sum(end < megabytes * 1e6 for end in ends) + 1))


def measure(megabytes: float, rounds: int, pythons: dict[str, str], work: Path) -> dict[str, Any]:
    """All contenders in turns, and our memory on four times the text."""
    from lit_llm.models.tokenizer import Tokenizer

    everything = documents(4 * megabytes, pages())[0]
    texts = _first(everything, megabytes)
    size = sum(len(text.encode()) for text in texts.values())
    files = write_files(texts, work / "text")
    write_files(everything, work / "more")
    write_files(_first(texts, 0.3), work / "few")
    Tokenizer.train([*texts.values()][::20], VOCABULARY, or_fewer=True).save_pretrained(
        work / "tokenizer"
    )
    for which, python in pythons.items():  # kernels and bytecode are compiled once a machine
        run(which, python, work / "few", work / "tokenizer", work / "out")
    runs: dict[str, list[dict[str, float]]] = {which: [] for which in pythons}
    verdicts = {}
    for _ in range(rounds):
        for which, python in pythons.items():
            runs[which].append(run(which, python, work / "text", work / "tokenizer", work / "out"))
            verdicts[which] = (verdicts_of_datatrove if which == DATATROVE else our_verdicts)(
                work / "out"
            )
    result: dict[str, Any] = {
        "megabytes": size / 1e6,
        "documents": len(texts),
        "files": len(files),
        "cores": CORES,
    }
    for which, measured in runs.items():
        seconds = statistics.median(each["seconds"] for each in measured)
        result[which] = {
            "seconds": [each["seconds"] for each in measured],
            "mb_per_second": size / 1e6 / seconds,
            "cpu_seconds": [each["cpu_seconds"] for each in measured],
            "peak_bytes": max(int(each["peak_bytes"]) for each in measured),
            "passed": len(verdicts[which][0]), "kept": len(verdicts[which][1]),
            "tokens": verdicts[which][2],
        }  # fmt: skip
    if DATATROVE in runs:
        for which in (SAME, WEB):
            result[which]["times_as_fast"] = (
                result[which]["mb_per_second"] / result[DATATROVE]["mb_per_second"]
            )
        for number, name in enumerate(("rules", "rules and duplicates")):
            different = verdicts[SAME][number] ^ verdicts[DATATROVE][number]
            result[f"same by {name}"] = 1 - len(different) / len(texts)
    less, most = (
        int(
            run(PROCESSES, sys.executable, work / text, work / "tokenizer", work / "out")[
                "peak_bytes"
            ]
        )
        for text in ("text", "more")
    )
    result["memory"] = {
        "megabytes": sum(len(text.encode()) for text in everything.values()) / 1e6,
        "peak_bytes": [less, most], "growth": most / less, "bound": BOUND,
    }  # fmt: skip
    return result


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--datatrove", default=str(DATATROVE_PYTHON), help="a Python that has datatrove"
    )
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dry-run", action="store_true", help="1 MB, ours alone; nothing is written"
    )
    parser.add_argument(
        "--child", nargs=4, metavar=("WHICH", "TEXT", "TOKENIZER", "OUT"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.child:
        which, *paths = args.child
        text, tokenizer, out = map(Path, paths)
        theirs(text, tokenizer, out) if which == DATATROVE else ours(which, text, tokenizer, out)
        return
    if args.dry_run:
        args.megabytes, args.rounds = 1, 1
    pythons = {SAME: sys.executable, WEB: sys.executable}
    if not args.dry_run:
        pythons[DATATROVE] = args.datatrove
    with tempfile.TemporaryDirectory() as work:
        result = measure(args.megabytes, args.rounds, pythons, Path(work))
    for which in pythons:
        found = result[which]
        times = (
            f", {found['times_as_fast']:.1f} times datatrove" if "times_as_fast" in found else ""
        )
        print(f"{which:16} {found['mb_per_second']:6.2f} MB/s{times}; {found['kept']:,} of "
              f"{result['documents']:,} "
              f"documents and {found['tokens']:,} tokens; {found['peak_bytes'] / 1e6:,.0f} MB at "
              f"most")  # fmt: skip
    if DATATROVE in pythons:
        print(f"the same documents: by the rules {result['same by rules']:.4f}, after duplicates "
              f"{result['same by rules and duplicates']:.4f}")  # fmt: skip
    memory = result["memory"]
    less, most = (f"{size / 1e6:,.0f} MB" for size in memory["peak_bytes"])
    print(f"memory at {result['megabytes']:.0f} MB: {less} at most, at {memory['megabytes']:.0f} "
          f"MB {most}: {memory['growth']:.2f} times that (bound: {BOUND})")  # fmt: skip
    if not args.dry_run:
        print(f"wrote {write_result('end_to_end', result)}")


if __name__ == "__main__":
    main()
