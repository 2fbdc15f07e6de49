"""What does each part that learns faster bring, alone and left out of the whole?

    python benchmarks/ablation.py --corpus CORPUS_FOLDER

Trains the quickstart's model without parts, with each part alone, with all, and with each left out,
in two sizes, at equal tokens and at equal time (contenders/ours_run.py). Rounds are interleaved, so
that a machine that slows down slows all of them. Bits per byte on the corpus's validation
documents, lower is better; the table gives the median of the seeds and its distance to the farthest
seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from parts import NONE, parts_of, whole
from quality_per_second import prepare
from record import write_result

HERE = Path(__file__).resolve().parent
# The quickstart's shape, and one with four times the weights in its blocks.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 2, "hidden_size": 256, "num_heads": 2},
    "large": {"num_layers": 4, "hidden_size": 384, "num_heads": 3},
}
TINY: dict[str, dict[str, Any]] = {"tiny": {"num_layers": 2, "hidden_size": 32, "num_heads": 1}}
BUDGETS = ("tokens", "seconds")


def variants(num_layers: int) -> dict[str, dict[str, Any]]:
    """Name -> fields: none, each part alone, all, each part left out."""
    parts = parts_of(num_layers)
    alone = {f"only {name}": {**NONE, **part} for name, part in parts.items()}
    left_out = {f"without {name}": whole(num_layers, name) for name in parts}
    return {"none": NONE, **alone, "all": whole(num_layers), **left_out}


def run_once(
    fields: dict[str, Any], budget: list[str], prepared: Path, seed: int, small: list[str]
) -> dict[str, Any]:
    """One model in a process of its own."""
    out = prepared.with_suffix(".json")
    command = [sys.executable, HERE / "contenders" / "ours_run.py", "--prepared", prepared]
    command += ["--fields", json.dumps(fields), "--seed", seed, "--out", out, *budget, *small]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{fields}: status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(out.read_text())


def table(runs: list[dict[str, Any]]) -> str:
    """One row a variant; a column for each size and budget."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        key = run["variant"], run["size"], run["budget"]
        cells.setdefault(key, []).append(run["bits_per_byte"])
    columns = list(dict.fromkeys((size, budget) for _, size, budget in cells))
    lines = [f"{'':26}" + "".join(f"{f'{size}, equal {budget}':>26}" for size, budget in columns)]
    for variant in dict.fromkeys(variant for variant, _, _ in cells):
        line = f"{variant:26}"
        for column in columns:
            scores = cells[variant, *column]
            middle = statistics.median(scores)
            farthest = max(abs(score - middle) for score in scores)
            line += f"{f'{middle:.4f} +- {farthest:.4f}':>26}"
        lines.append(line)
    return "\n".join(lines)


def random_corpus(out: Path) -> None:
    """A corpus of random tokens, for a dry run."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.integers(1, 64, 3000) for name in ("train", "validation")}
    np.savez(out, **arrays, token_bytes=np.ones(64, np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="folder made by `lit_llm corpus build`")
    parser.add_argument("--tokens", type=float, default=6e6)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument(
        "--dry-run", action="store_true", help="two variants of a tiny model, two steps, no JSON"
    )
    args = parser.parse_args()
    if not args.dry_run and args.corpus is None:
        parser.error("--corpus is required")

    sizes, small = {name: SIZES[name] for name in args.sizes}, []
    if args.dry_run:
        # Nothing is compiled: that would take most of the time.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        sizes, small = TINY, ["--tokens-per-step", "64", "--seq-len", "32"]
        args.tokens, args.budgets, args.seeds = 128, ["tokens"], 1
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.npz"
        corpus = random_corpus(prepared) if args.dry_run else prepare(args.corpus, prepared)
        for seed in range(args.seeds):
            for size, shape in sizes.items():
                for budget in args.budgets:
                    given = [f"--{budget}", str(getattr(args, budget))]
                    models = list(variants(shape["num_layers"]).items())
                    for variant, fields in models[-2:] if args.dry_run else models:
                        run = run_once({**shape, **fields}, given, prepared, seed, small)
                        runs.append({"variant": variant, "size": size, "budget": budget, **run})
                        print(
                            f"seed {seed}  {size:6} equal {budget:8} {variant:26}"
                            f"{run['bits_per_byte']:8.4f}",
                            flush=True,
                        )
    print(table(runs))
    if not args.dry_run:
        question = __doc__.splitlines()[0]
        print(write_result("ablation", {"question": question, "corpus": corpus, "runs": runs}))


if __name__ == "__main__":
    main()
