"""Does a finetuning stop in time, and what does it forget, with rehearsal and without?

    python benchmarks/forgetting.py [--seeds 3]  # under half an hour on two cores
    python benchmarks/forgetting.py --dry-run  # a tiny model, one seed, two passes; no file

SmolLM2-135M-Instruct is finetuned by LoRA on 200 short questions about the standard library, for
ten passes, at one learning rate. `SFTModule` may end a run early (``model.patience``). Half of the
runs rehearse general questions (``data.rehearsal``), which are not those that `ForgettingCheck`
asks. The benchmark says for each run:

- at which validation the loss was lowest, and how many came after it;
- of which step ``final/`` is;
- what its weights forgot: general questions, paired by item, and the KL per token to the base.

Of all seeds together, the scores of an item are averaged over the seeds before the interval, which
then tells what other questions could say, not what other seeds could.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lit_llm  # noqa: F401  # isort: skip -- before torch, whose threads then do not spin
import lightning as L
import numpy as np
from finetune import make_base
from record import write_result

from lit_llm import (
    Checkpoint,
    CSVLogger,
    ForgettingCheck,
    InstructionDataModule,
    LoRAConfig,
    SFTModule,
)
from lit_llm.data.rows.docstrings import docstring_rows
from lit_llm.evaluate.forgetting.paired import paired_change
from lit_llm.evaluate.forgetting.rehearsal import SHARE
from lit_llm.fit.command import default_precision

EXAMPLES, HELD_OUT, PASSES, VALIDATIONS_A_PASS = 200, 50, 10, 2
LEARNING_RATE = 5e-4  # of all runs; the default would differ with rehearsal
LONGEST = 160  # characters of question and answer: short rows, many of them in the time
ARMS = {"without rehearsal": 0.0, "with rehearsal": SHARE}


def write_rows(file: Path) -> None:
    """200 training rows and 50 for validation, of the shortest, in a fixed order."""
    draw, found = random.Random(0), {"train": EXAMPLES, "validation": HELD_OUT}
    lines = []
    for split, count in found.items():
        rows = [
            row["messages"] for row in docstring_rows()
            if row["split"] == split
            and sum(len(message["content"]) for message in row["messages"]) <= LONGEST
        ]  # fmt: skip
        if len(rows) < count:
            sys.exit(f"forgetting: {len(rows)} short rows for {split}, {count} are needed")
        for messages in draw.sample(rows, count):
            system = {"role": "system", "content": "Explain Python."}
            lines.append({"messages": [system, *messages], "split": split})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(base: Path, rows: Path, folder: Path, seed: int, share: float, tiny: bool) -> dict:
    """Finetune once; return what the run's files say."""
    L.seed_everything(seed, verbose=False)
    data = InstructionDataModule(
        str(rows), tokenizer=str(base), cache_dir=str(rows.parent / "cache"), seq_len=256,
        micro_batch_size=4, global_batch_tokens=4 * 256, epochs=2 if tiny else PASSES,
        rehearsal=share, min_steps=0, seed=seed,
    )  # fmt: skip
    tokens = json.loads(data.datacard_file.read_text())["splits"]["train"]["tokens"]
    a_pass = max(VALIDATIONS_A_PASS, round(tokens / data.global_batch_tokens))
    data.validate_every = a_pass // VALIDATIONS_A_PASS
    module = SFTModule(str(base), LoRAConfig(), learning_rate=LEARNING_RATE)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, logger=CSVLogger(folder),
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
        precision="32-true" if tiny else default_precision("cpu"),
        callbacks=[ForgettingCheck(every=0, max_new_tokens=4 if tiny else 32), Checkpoint()],
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    with open(folder / "metrics.csv", newline="") as file:
        losses = {int(r["step"]): float(r["val_loss"]) for r in csv.DictReader(file)
                  if r["val_loss"]}  # fmt: skip
    steps = sorted(losses)
    best = min(steps, key=lambda step: losses[step])
    forgetting = json.loads((folder / "forgetting.json").read_text())
    measured = next(r for r in forgetting["steps"] if r["step"] == forgetting["final_step"])
    return {
        "seed": seed,
        "validation_loss": losses,
        "best_step": best,
        "steps": steps[-1],
        "planned_steps": data.steps,
        "validations_after_best": len(steps) - 1 - steps.index(best),
        "final_step": forgetting["final_step"],
        "kl": measured["kl"],
        "questions": measured["changes"]["questions/score"],
        "rehearsal": forgetting["rehearsal"],
        "seconds": seconds,
        "items": forgetting["items"]["questions/score"],
    }


def say(arm: str, result: dict) -> None:
    change = result["questions"]
    print(
        f"{arm:18} seed {result['seed']}: best at step {result['best_step']}, ended at "
        f"{result['steps']} of {result['planned_steps']}, {result['validations_after_best']} "
        f"validations after it; final/ is step {result['final_step']}; questions "
        f"{change['before']:.3f} -> {change['after']:.3f} ({change['low']:+.3f} to "
        f"{change['high']:+.3f}), KL {result['kl']:.4f}; {result['seconds']:.0f} s",
        flush=True,
    )


def mean_of_items(results: list[dict], when: str) -> dict[str, float]:
    scores = np.mean([result["items"][when] for result in results], axis=0)
    return {str(place): float(score) for place, score in enumerate(scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    seeds = 1 if args.dry_run else args.seeds
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        base, rows = Path(temporary) / "base", Path(temporary) / "rows.jsonl"
        make_base(base, tiny=args.dry_run)
        write_rows(rows)
        for seed in range(seeds):
            for arm, share in ARMS.items():
                folder = Path(temporary) / f"{arm}-{seed}".replace(" ", "-")
                arms[arm].append(run(base, rows, folder, seed, share, args.dry_run))
                say(arm, arms[arm][-1])
    pooled = {
        arm: asdict(paired_change(mean_of_items(found, "before"), mean_of_items(found, "after")))
        for arm, found in arms.items()
    }
    without, with_it = (mean_of_items(found, "after") for found in arms.values())
    gain = asdict(paired_change(without, with_it))
    for arm, change in pooled.items():
        print(f"{arm}, {seeds} seeds: {change['change']:+.3f} ({change['low']:+.3f} to "
              f"{change['high']:+.3f}, {change['n']} questions)")  # fmt: skip
    print(f"rehearsal keeps {gain['change']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
    late = max(run["validations_after_best"] for found in arms.values() for run in found)
    print(f"ended within {late} validations of the best step")
    if not args.dry_run:
        for found in arms.values():
            for result in found:
                del result["items"]
        result = {"examples": EXAMPLES, "passes": PASSES, "learning_rate": LEARNING_RATE,
                  "seeds": seeds, "runs": arms, "all_seeds": pooled,
                  "rehearsal_keeps": gain}  # fmt: skip
        print(f"wrote {write_result('forgetting', result)}")


if __name__ == "__main__":
    main()
