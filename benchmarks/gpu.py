"""Training speed on one GPU: tokens a second, MFU and peak memory; see gpu.sh.

A suite is a list of shapes with contenders. Each contender is a process of its own
(contenders/gpu_worker.py), so that memory and compiler of one do not touch the other; those of a
shape follow each other, and begin at the batch that the first one had. A batch that does not fit is
halved. The JSON is written after every row: what fails is a row that says why, and what would not
end within the budget is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
FORMULA = """\
MFU = tokens/s x FLOPs a token / the device's dense bfloat16 peak (H100: 989 TFLOP/s), \
where products are in 8 bits too
FLOPs a token = 6 x matrix parameters, head included, input embedding not \
(4 x where LoRA has them frozen)
              + forward and backward of causal attention, counted once \
(whole rows, where documents are masked too)"""

LLAMA = {"vocab_size": 50304, "tie_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "50M": {"preset": "autoresearch-50m"},
    "350M": {**LLAMA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16,
             "intermediate_size": 2816},
    "1.2B": {**LLAMA, "hidden_size": 2048, "num_layers": 22, "num_heads": 16,
             "intermediate_size": 5632},
    "3B": {**LLAMA, "hidden_size": 3072, "num_layers": 26, "num_heads": 24,
           "intermediate_size": 8192},
    "8B": {"preset": "llama-3-8b"},
    "d12": {"preset": "nano-5m", "vocab_size": 32768, "hidden_size": 768, "num_layers": 12,
            "num_heads": 6},
    "tiny": {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
}  # fmt: skip


class Group(NamedTuple):
    """Contenders of one shape; ratios are to the first."""

    shape: str
    # Rows tried first: by arithmetic (docs/decisions.md, "The GPU benchmark") they fit into 80 GB
    batch: int
    contenders: list[str]
    seq_len: int = 2048


SUITES: dict[str, list[Group]] = {
    "bf16": [
        Group("50M", 64, ["ours", "trainer"]),
        Group("350M", 32, ["ours", "trainer"]),
        Group("1.2B", 16, ["ours", "trainer"]),
        Group("3B", 4, ["ours", "trainer"]),
    ],
    "fp8": [Group("1.2B", 16, ["ours", "fp8"]), Group("3B", 4, ["ours", "fp8"])],
    "lora": [Group("8B", 4, ["lora"]), Group("8B", 2, ["lora"], seq_len=4096)],
    # Batches that the peers have room for, with all logits at once. The shape that counts comes
    # first.
    "peers": [
        Group("1.2B", 8, ["ours", "transformers", "litgpt"]),
        Group("d12", 32, ["ours muon", "nanochat"]),
        Group("350M", 16, ["ours", "transformers", "litgpt"]),
    ],
    # Rows of documents that do not see each other: skipped by FlexAttention, and through SDPA with
    # a mask of all pairs.
    "documents": [Group("350M", 16, ["ours", "documents", "documents sdpa"])],
}
OUT_OF_MEMORY = ("out of memory", "status_alloc_failed")  # torch and CUDA; cuBLAS and cuDNN
now = time.monotonic


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    contender: str
    shape: str
    seq_len: int
    batch: int
    warmup: int
    steps: int
    dry: bool = False
    """On the CPU and not compiled."""


def work(job: Job, python: str, seconds: float) -> tuple[dict[str, Any] | None, str]:
    """The numbers of ``job`` by a process of its own, or None and what it said when it failed."""
    # Segments that grow keep a batch that fills the memory from failing by what lies between its
    # tensors; nanochat sets this too. Offline, what looks for a kernel on the hub gives up at once.
    env = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "HF_HUB_OFFLINE": "1", **os.environ}
    command = [python, str(HERE / "contenders/gpu_worker.py"), json.dumps(asdict(job))]
    # Files, not pipes: the compiler's helpers may hold a pipe open when the process is gone.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, process_group=0)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None, "stopped: the suite's budget was spent"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        found = [text for text in out if text.startswith("{")]
        if status or not found:
            return None, err.read().strip() or f"ended with status {status} and no numbers"
        return json.loads(found[-1]), ""


def measure(job: Job, python: str, ends: float) -> dict[str, Any]:
    """The row of ``job``, at half its batch, and again, where that does not fit and there is time
    until ``ends``."""
    too_large = []
    while True:
        began = now()
        numbers, error = work(job, python, ends - began)
        seconds = now() - began
        # A batch that just fits makes the allocator give memory back and ask again, which takes
        # most of the step.
        scarce = numbers is not None and numbers.get("alloc_retries", 0) > 0
        scarce = scarce or any(words in error.lower() for words in OUT_OF_MEMORY)
        if not scarce or job.batch == 1 or now() + seconds > ends:
            break
        too_large.append(job.batch)
        job = replace(job, batch=job.batch // 2)
    row: dict[str, Any] = {"shape": job.shape, "contender": job.contender, "seq_len": job.seq_len,
                           "batch": job.batch, "too_large": too_large,
                           "wall_seconds": round(seconds, 1)}  # fmt: skip
    return row | ({"failed": error[-3000:]} if numbers is None else numbers)


def run_suite(
    groups: list[Group],
    args: argparse.Namespace,
    ends: float,
    save: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """All rows, printed and handed to ``save`` as they come; none begins that would not end by
    ``ends``."""
    rows: list[dict[str, Any]] = []
    longest = 0.0
    print(HEADER, flush=True)
    for shape, batch, contenders, seq_len in groups:
        first: dict[str, Any] = {}
        for contender in contenders:
            job = Job(
                contender,
                shape,
                seq_len,
                first.get("batch", batch),
                args.warmup,
                args.steps,
                args.dry_run,
            )
            if now() + longest > ends:
                row = {"shape": shape, "contender": contender, "seq_len": seq_len,
                       "batch": job.batch,
                       "skipped": f"would not end within the budget of {args.budget:.0f} "
                                  f"s"}  # fmt: skip
            else:
                peer = contender in ("litgpt", "nanochat")
                row = measure(job, args.peers_python if peer else sys.executable, ends)
                longest = max(longest, row["wall_seconds"])
            if contender == contenders[0] and "seconds" in row:
                first = row
            elif first and "seconds" in row:
                row["ratio"] = row["tokens_per_second"] / first["tokens_per_second"]
            rows.append(row)
            print(line(row), flush=True)
            save(rows)
    return rows


HEADER = (f"{'shape':>5} {'length':>6} {'contender':14} {'batch':>5} {'tokens/s':>10} {'MFU':>6} "
          f"{'to first':>8} "
          f"{'optimizer':>9} {'memory':>8}  attention; notes")  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    begins = f"{row['shape']:>5} {row['seq_len']:6} {row['contender']:14} {row['batch']:5} "
    if "seconds" not in row:
        said = next(kind for kind in ("skipped", "failed") if kind in row)
        return f"{begins}{said}: {row[said].splitlines()[-1]}"
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
    ratio = f"{row['ratio']:.2f} x" if "ratio" in row else "-"
    optimizer = f"{row['optimizer_ms']:.1f} ms" if row.get("optimizer_ms") else "-"
    notes = "; ".join(filter(None, (row["attention"], row["note"])))
    return (f"{begins}{row['tokens_per_second']:10,.0f} {mfu:>6} {ratio:>8} {optimizer:>9} "
            f"{row['peak_bytes'] / 1e9:5.1f} GB  {notes}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument(
        "--shape", help="only this one of the suite's shapes, into a file of its own"
    )
    parser.add_argument("--batch", type=int, help="tried first, in place of the suite's")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9, help="timed, in three blocks")
    parser.add_argument("--budget", type=float, default=480, help="seconds for the suite")
    peers = HERE.parent / ".venv-peers/bin/python"
    parser.add_argument("--peers-python", default=str(peers) if peers.exists() else sys.executable,
                        help="interpreter that has litgpt; nanochat's checkout is "
                             "$NANOCHAT")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape on the CPU, no file")
    args = parser.parse_args()
    began = now()

    groups = [group for group in SUITES[args.suite] if args.shape in (None, group.shape)]
    if not groups:
        parser.error(f"--suite {args.suite} has no shape {args.shape}")
    if args.batch:
        groups = [group._replace(batch=args.batch) for group in groups]
    if args.dry_run:
        args.warmup, args.steps = 1, 3
        contenders = dict.fromkeys(contender for group in groups for contender in group.contenders)
        groups = [Group("tiny", 2, list(contenders), seq_len=16)]
    else:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("no CUDA device here; --dry-run tries the script on a CPU")

    def save(rows: list[dict[str, Any]]) -> None:
        if args.dry_run:
            return
        from record import write_result

        name = "_".join(filter(None, ("gpu", args.suite, args.shape)))
        file = write_result(name, {"suite": args.suite, "formula": FORMULA, "rows": rows})
        if out := os.environ.get("OUT"):
            Path(out, file.name).write_text(file.read_text())

    print(FORMULA)
    print(
        f"suite {args.suite}: {args.budget:.0f} s; what would not end in time, going by the "
        f"longest row, is skipped"
    )
    rows = run_suite(groups, args, began + args.budget, save)
    print(f"{now() - began:.0f} s")
    failed = [row for row in rows if "failed" in row]
    for row in failed:
        print(f"\n{row['shape']} {row['contender']} failed:\n{row['failed']}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
