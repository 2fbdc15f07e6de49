"""Near-duplicates against datatrove: how fast, how many found, how many wrongly?

    make peers python benchmarks/dedup.py [--megabytes 60] [--rounds 2] [--dry-run]  # 3 to 4
    minutes on two cores

Both read the same JSONL files and end with the ids to drop, on two workers: datatrove's four stages
with its words split at whitespace (its own splitter is several times slower), ours with the same
5-grams, bands and rows, and with our default cut of the same 112 hashes. They take turns in
processes of their own. Documents are pieces of Python files and documentation on this machine, with
exact copies and copies of which 2 to 5% of the words are edited planted among them.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from record import write_result

DATATROVE_PYTHON = Path(__file__).resolve().parents[1] / ".venv-datatrove/bin/python"
WORKERS = 2
DATATROVE, SAME, DEFAULT = "datatrove, 14 x 8", "ours, 14 x 8", "ours, 28 x 4"


@functools.cache
def text_files() -> list[Path]:
    """Python files and documentation of the standard library, installed packages and the system."""
    roots = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc")
    endings = (".py", ".md", ".rst", ".txt")
    return [
        file
        for root in dict.fromkeys(roots)
        for file in sorted(path for path in Path(root).rglob("*") if path.suffix in endings)
    ]


def pieces() -> Iterator[str]:
    """Text of this machine in pieces of 1 to 8 kB that end with a line."""
    draw = random.Random(0)
    for file in text_files():
        try:
            rest = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        while len(rest) > 500:
            at = rest.find("\n", draw.randint(1000, 8000)) + 1 or len(rest)
            yield rest[:at]
            rest = rest[at:]


def edited(text: str, draw: random.Random) -> str:
    """A copy with 2 to 5% of the words replaced, left out or doubled."""
    parts = re.findall(r"\s*\S+\s*", text)
    for at in draw.sample(range(len(parts)), round(draw.uniform(0.02, 0.05) * len(parts))):
        parts[at] = draw.choice((f" {draw.choice(parts).strip()}x ", " ", parts[at] * 2))
    return "".join(parts)


def documents(
    megabytes: float, texts: Iterable[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Of ``texts`` as many, by id and in random order; each planted exact copy's original; each
    edited copy's."""
    draw = random.Random(1)
    originals: list[str] = []
    size = 0
    for piece in texts:
        if size >= megabytes * 1e6 * 0.85:
            break
        originals.append(piece)
        size += len(piece.encode())
    named = {f"o{i}": text for i, text in enumerate(originals)}
    chosen = draw.sample(sorted(named), round(len(named) * 0.15))
    exact = {f"x{i}": name for i, name in enumerate(chosen[: len(chosen) // 3])}
    near = {f"n{i}": name for i, name in enumerate(chosen[len(chosen) // 3 :])}
    named |= {copy: named[name] for copy, name in exact.items()}
    named |= {copy: edited(named[name], draw) for copy, name in near.items()}
    names = list(named)
    draw.shuffle(names)
    return {name: named[name] for name in names}, exact, near


def ours(folder: Path, bands: int, rows: int) -> dict[str, str]:
    """Dropped ids and what is kept for each."""
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa
    import pyarrow.json

    from lit_llm.corpus.block import documents
    from lit_llm.corpus.dedup.duplicates import Dedup

    dedup = Dedup(bands=bands, rows=rows)
    schema = pa.schema({"id": pa.string(), "text": pa.large_string()})
    block = pa.json.ReadOptions(block_size=4_000_000)

    def batches() -> Iterator[pa.Table]:
        for file in sorted(folder.glob("*.jsonl")):
            reader = pa.json.open_json(file, block, pa.json.ParseOptions(explicit_schema=schema))
            for batch in reader:
                yield documents(batch["text"], id=batch["id"])

    with ThreadPoolExecutor(WORKERS) as threads:
        verdicts = dedup.decide(threads.map(dedup.sign, batches()))
    return dict(zip(verdicts["id"].to_pylist(), verdicts["duplicate_of"].to_pylist(), strict=True))


def theirs(folder: Path) -> dict[str, str]:
    """The same by datatrove's clusters: the one document of a cluster that stays."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer
    from loguru import logger

    logger.remove()
    config = MinhashConfig()
    out = folder / "datatrove"
    sign = MinhashDedupSignature(str(out / "signatures"), config)
    sign.word_tokenizer = WhitespaceTokenizer()
    buckets = MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)
    cluster = MinhashDedupCluster(
        str(out / "buckets"), str(out / "remove"), config=config, save_cluster_id=True
    )
    drop = MinhashDedupFilter(
        str(out / "remove"), exclusion_writer=JsonlWriter(str(out / "dropped"), compression=None)
    )

    def reader() -> JsonlReader:
        return JsonlReader(str(folder), glob_pattern="*.jsonl")

    stages: tuple[tuple[list[Any], int], ...] = (
        ([reader(), sign], WORKERS), ([buckets], config.num_buckets), ([cluster], 1),
        ([reader(), drop], WORKERS),
    )  # fmt: skip
    for number, (stage, tasks) in enumerate(stages):
        logs = str(out / f"log-{number}")
        LocalPipelineExecutor(
            stage, tasks=tasks, workers=WORKERS, logging_dir=logs, start_method="fork"
        ).run()
    return _clusters(folder, out)


def _clusters(folder: Path, out: Path) -> dict[str, str]:
    dropped = {
        json.loads(line)["id"]
        for file in (out / "dropped").glob("*.jsonl")
        for line in file.read_text().splitlines()
    }
    members: dict[int, list[str]] = {}
    for rank, file in enumerate(sorted(folder.glob("*.jsonl"))):
        names = [
            json.loads(line)["id"] for line in file.read_text(encoding="utf-8").split("\n") if line
        ]
        data = (out / "remove" / f"{rank:06d}.clusters").read_bytes()
        for document, number in struct.iter_unpack("<II", data):
            members.setdefault(number, []).append(names[document])
    kept = {
        number: next(name for name in names if name not in dropped)
        for number, names in members.items()
    }
    return {
        name: kept[number] for number, names in members.items() for name in names if name in dropped
    }


def child(which: str, folder: Path) -> None:
    """Run one contender and write what it drops, its seconds, and apart from them those until it is
    loaded."""
    started = time.perf_counter()
    if which == DATATROVE:
        import datatrove.pipeline.dedup  # noqa: F401
        import spacy  # noqa: F401  # by datatrove when it is first asked for a splitter
    else:
        from lit_llm.corpus.dedup.duplicates import near_duplicates

        near_duplicates(["numba needs a second and a half to begin", "a second"])
    ready, used = time.perf_counter(), _processor_seconds()
    if which == DATATROVE:
        dropped = theirs(folder)
    else:
        dropped = ours(folder, 14, 8) if which == SAME else ours(folder, 28, 4)
    answer = {
        "start": ready - started,
        "wall": time.perf_counter() - ready,
        "cpu": _processor_seconds() - used,
    }
    (folder / "answer.json").write_text(json.dumps({**answer, "dropped": dropped}))


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def run(which: str, python: str, folder: Path) -> dict[str, Any]:
    """One contender on a folder of JSONL files, in a process of its own."""
    shutil.rmtree(folder / "datatrove", ignore_errors=True)
    command = [python, __file__, "--child", which, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{which}: {done.stderr[-2000:]}")
    return json.loads((folder / "answer.json").read_text())


def jaccard(a: str, b: str) -> float:
    """True similarity of two texts' sets of 5 words in a row."""
    sets = []
    for text in (a, b):
        words = re.findall(r"[^\W_]+", text.lower())
        sets.append({tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--datatrove", default=str(DATATROVE_PYTHON), help="a Python that has datatrove"
    )
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--dry-run", action="store_true", help="2 MB, ours alone; nothing is written"
    )
    parser.add_argument("--child", nargs=2, metavar=("WHICH", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    if args.dry_run:
        args.megabytes, args.rounds = 2, 1
    texts, exact, near = documents(args.megabytes, pieces())
    size = sum(len(text.encode()) for text in texts.values()) / 1e6
    pythons = {SAME: sys.executable, DEFAULT: sys.executable}
    if not args.dry_run:
        pythons[DATATROVE] = args.datatrove
    runs: dict[str, list[dict[str, Any]]] = {which: [] for which in pythons}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [(folder / f"{i}.jsonl").open("w", encoding="utf-8") for i in range(WORKERS)]
        for i, (name, text) in enumerate(texts.items()):
            files[i % WORKERS].write(json.dumps({"id": name, "text": text}) + "\n")
        for file in files:
            file.close()
        run(SAME, sys.executable, folder)  # kernels are compiled once a machine
        for _ in range(args.rounds):
            for which, python in pythons.items():
                runs[which].append(run(which, python, folder))
    result: dict[str, Any] = {
        "megabytes": size,
        "documents": len(texts),
        "exact": len(exact),
        "near": len(near),
    }
    for which, answers in runs.items():
        dropped = answers[0]["dropped"]

        def recall(copies: dict[str, str], dropped: dict[str, str] = dropped) -> float:
            return sum(copy in dropped or name in dropped for copy, name in copies.items()) / len(
                copies
            )

        similarity = [jaccard(texts[name], texts[kept]) for name, kept in dropped.items()]
        result[which] = {
            "start_seconds": [answer["start"] for answer in answers],
            "wall_seconds": [answer["wall"] for answer in answers],
            "cpu_seconds": [answer["cpu"] for answer in answers],
            "mb_per_second": size / min(answer["wall"] for answer in answers),
            "mb_per_cpu_second": size / min(answer["cpu"] for answer in answers),
            "dropped": len(dropped), "exact_recall": recall(exact), "near_recall": recall(near),
            "at_jaccard_half": sum(s >= 0.5 for s in similarity) / len(similarity),
        }  # fmt: skip
        print("{:18} {mb_per_second:6.1f} MB/s, {mb_per_cpu_second:6.1f} MB/s of a processor; "
              "exact {exact_recall:.3f} "
              "and near {near_recall:.3f} found; {at_jaccard_half:.3f} of {dropped} drops at "
              "Jaccard 0.5 or more"
              .format(which, **result[which]))  # fmt: skip
    if not args.dry_run:
        print(f"wrote {write_result('dedup', result)}")


if __name__ == "__main__":
    main()
