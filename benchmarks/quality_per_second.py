"""How good is a small language model after the same training time: ours, nanochat and litgpt, side
by side.

    make peers && git clone https://github.com/karpathy/nanochat ../nanochat
    python benchmarks/quality_per_second.py --corpus CORPUS_FOLDER --nanochat ../nanochat

Every contender trains on the same tokens of the same corpus folder for the same time, with its own
model shape, batch, optimizer and schedule (the peers 4,096 tokens a step in sequences of 512: with
8,192 nanochat is worse, see docs/decisions.md; ours as in configs/pretrain/quickstart.yaml,
and "plain" the same without the parts of parts.py; "nanochat-tuned" with 7 times its own rates and
heads of 128), and is scored by the same function (contenders/bpb.py:
windows of 512) on the corpus's validation documents: bits per byte, lower is better. Compilation
and evaluation are outside the time for all. Rounds are interleaved (ours, nanochat, litgpt, ours,
...), so that a machine that slows down slows all of them; a round's seed sets initial weights and
the order of the data. What counts is the ratio within one run of this script: the absolute number
moves with the files that a Python version happens to ship.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from parts import NONE
from record import commit, write_result

HERE = Path(__file__).resolve().parent
# Contender -> its program in contenders/ and the options of its program.
CONTENDERS: dict[str, tuple[str, dict[str, object]]] = {
    "ours": ("ours_run.py", {}),
    "plain": ("ours_run.py", {"--fields": json.dumps(NONE)}),
    "nanochat": ("nanochat_run.py", {"--head-dim": 64}),
    # The best of a sweep (docs/decisions.md): nanochat's own rates are for larger batches.
    "nanochat-tuned": ("nanochat_run.py", {"--head-dim": 128, "--lr-scale": 7}),
    "litgpt": ("litgpt_run.py", {}),
}


def prepare(corpus_folder: Path, out: Path) -> dict[str, object]:
    """Write the corpus as the plain arrays that every contender reads, and describe them.

    train and validation: (tokens,) the documents of all sources, each as `[eos] + ids`;
    token_bytes: (vocab,).
    """
    from lit_llm.corpus.build import Corpus
    from lit_llm.corpus.output.shards import read_tokens

    corpus = Corpus.load(corpus_folder)
    streams = {
        "train": [read_tokens(folder) for _, folder in sorted(corpus.train_dirs.items())],
        "validation": [read_tokens(folder) for _, folder in sorted(corpus.validation_dirs.items())],
    }
    arrays = {split: np.concatenate(parts) for split, parts in streams.items()}
    token_bytes = corpus.tokenizer.token_bytes()
    np.savez(out, **arrays, token_bytes=token_bytes)
    return {
        "train_tokens": len(arrays["train"]),
        "validation_tokens": len(arrays["validation"]),
        "validation_bytes": int(token_bytes[arrays["validation"]].sum(dtype=np.int64)),
        "vocab_size": len(token_bytes),
        "fingerprint": corpus.fingerprint,
        "validation_sha256": hashlib.sha256(arrays["validation"].tobytes()).hexdigest(),
    }


def run_once(
    name: str, args: argparse.Namespace, prepared: Path, seed: int, scratch: Path
) -> dict[str, object]:
    """One contender, one seed, in a process of its own."""
    program, options = CONTENDERS[name]
    python = sys.executable if program == "ours_run.py" else args.peers_python
    out = scratch / f"{name}-{seed}.json"
    command = [
        python,
        HERE / "contenders" / program,
        "--prepared",
        prepared,
        "--seconds",
        args.seconds,
    ]
    command += ["--seed", seed, "--out", out]
    command += [part for option in options.items() for part in option]
    if program == "nanochat_run.py":
        command += ["--nanochat", args.nanochat.resolve(), "--dtype", args.nanochat_dtype]
    load_before = os.getloadavg()[0]
    log = scratch / f"{name}-{seed}.log"
    with log.open("w") as stream:
        done = subprocess.run(
            [str(part) for part in command], stdout=stream, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"{name} failed with status {done.returncode}:\n{log.read_text()[-4000:]}")
    return {"contender": name, "load_before": round(load_before, 2), **json.loads(out.read_text())}


def table(runs: list[dict], medians: dict[str, float]) -> str:
    lines = [
        f"{'':15}{'bits/byte':>10}{'of ours':>11}{'tokens/s':>10}{'tokens':>12}{'parameters':>12} "
        f" runs"
    ]
    for name, median in medians.items():
        own = [run for run in runs if run["contender"] == name]
        middle = min(own, key=lambda run: abs(run["bits_per_byte"] - median))
        scores = " ".join(f"{run['bits_per_byte']:.4f}" for run in own)
        lines.append(
            f"{name:15}{median:10.4f}{median / medians['ours']:10.3f}x"
            f"{middle['tokens_per_second']:10,.0f}"
            f"{middle['tokens']:12,}{middle['parameters']:12,}  {scores}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder made by `lit_llm corpus build`"
    )
    parser.add_argument(
        "--nanochat", type=Path, required=True, help="checkout of karpathy/nanochat"
    )
    parser.add_argument("--nanochat-dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--peers-python", type=Path, default=HERE.parent / ".venv-peers/bin/python")
    parser.add_argument("--result", default="quality_per_second", help="name of the JSON")
    args = parser.parse_args()

    # Before the first run: a wrong path must not show after half an hour.
    asked = [args.peers_python, "-c", "import importlib.metadata as m; print(m.version('litgpt'))"]
    peers = {
        "nanochat": commit(args.nanochat),
        "litgpt": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip(),
    }
    runs: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prepared = scratch / "prepared.npz"
        corpus = prepare(args.corpus, prepared)
        print(
            f"train: {corpus['train_tokens']:,} tokens, validation: "
            f"{corpus['validation_bytes']:,} bytes",
            flush=True,
        )
        for seed in range(args.repeats):
            for name in args.contenders:
                run = run_once(name, args, prepared, seed, scratch)
                runs.append(run)
                print(
                    f"round {seed + 1}  {name:15}{run['bits_per_byte']:8.4f} bits/byte", flush=True
                )

    medians = {
        name: statistics.median(run["bits_per_byte"] for run in runs if run["contender"] == name)
        for name in args.contenders
    }
    result = {
        "question": __doc__.splitlines()[0],
        "median_bits_per_byte": medians,
        "ours_to": {
            name: medians["ours"] / median for name, median in medians.items() if name != "ours"
        },
        "peers": peers,
        "corpus": corpus,
        "runs": runs,
    }
    file = write_result(args.result, result)
    print(table(runs, medians))
    ratios = ", ".join(
        f"{ratio:.3f}x {name}"
        for name, ratio in result["ours_to"].items()  # type: ignore[attr-defined]
    )
    print(f"ours: {ratios}; {file}")


if __name__ == "__main__":
    main()
