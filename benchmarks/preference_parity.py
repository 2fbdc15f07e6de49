"""Preference losses with DPOModule and RewardModule against TRL's trainers: the same numbers?

    make peers  # once: .venv-finetune, with the versions of requirements-finetune.txt
    python benchmarks/preference_parity.py  # about fifteen minutes on two cores
    python benchmarks/preference_parity.py --dry-run  # the small model, three losses; no file

Two models (a random Llama with a small width; SmolLM2-135M from its package), in float32, all
weights trained. Both programs get the same base and the same ids of ragged pairs in the same order,
four a step, sixteen in all, again and again. Ours come as packed trees, in which a prompt stands
once, in two micro-batches; TRL's as padded rows, in one. Written down are the largest relative
differences over 20 steps of the loss and of the gradient's norm, and the largest difference of the
mean rewards of chosen and of rejected answers, over the largest reward of the run: rewards begin at
0.

Where the two define things differently, the rows are such that both mean the same:

- TRL's DPOTrainer has no sigmoid loss with label smoothing. Its "aot" is that loss on sorted
  ratios, so with one pair in each of four micro-batches it is that loss.
- TRL's ORPO also learns the prompt. Prompts are one token there, which nothing predicts.
- TRL's simpo_gamma is ours times beta.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lit_llm  # noqa: F401  # isort: skip -- before torch, whose threads then do not spin
import lightning as L
import numpy as np
import torch
from finetune_parity import PEER, difference, make_base
from record import write_result
from torch import Tensor
from torch.utils.data import DataLoader

from lit_llm import DPOModule, RewardModule, Transformer
from lit_llm.data.answer_rows import AnswerRows, stack_answers
from lit_llm.data.conversations import Conversations
from lit_llm.data.mismatched import MismatchedAnswers
from lit_llm.data.packing import pack
from lit_llm.data.trees import TREE_ARRAYS, TokenPath, Tree, answers_tree
from lit_llm.training.preferences.answers import answer_logps

BOUND = 1e-4
"""Largest relative difference that counts as the same."""
RATES = {"tiny": 3e-4, "SmolLM2-135M": 2e-5}
DISTINCT = 4
"""Steps with other pairs; they are repeated, so that the model learns them and rewards grow."""
PAIRS = 4
"""Examples in a step."""
LENGTH = 256
PAD_TOKEN = "<|endoftext|>"  # of SmolLM2's vocabulary; never the last token of an answer


@dataclass(frozen=True)
class Case:
    """One loss, as both programs name it."""

    trainer: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    alone: bool = False
    """TRL gets one pair in each of several micro-batches."""
    short_prompts: bool = False
    unpaired: bool = False
    margins: bool = False


def _dpo(loss: Any, theirs: Any = None, alone: bool = False, **more: Any) -> Case:
    settings = theirs or {"loss_type": [loss], **more}
    ours = {"loss": loss, **more}
    return Case("dpo", ours, {"beta": 0.1, **settings}, alone)


CASES: dict[str, Case] = {
    "DPO sigmoid": _dpo("sigmoid"),
    "DPO sigmoid, smoothed": _dpo(
        "sigmoid", {"loss_type": ["aot"], "label_smoothing": 0.1}, alone=True, label_smoothing=0.1
    ),
    "DPO robust": _dpo("robust", label_smoothing=0.1),
    "DPO hinge": _dpo("hinge"),
    "DPO ipo": _dpo("ipo"),
    "DPO sigmoid_norm": _dpo("sigmoid_norm", beta=5.0),
    "DPO apo_zero": _dpo("apo_zero"),
    "DPO apo_down": _dpo("apo_down"),
    "DPO sigmoid and nll": _dpo(
        "sigmoid", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, sft_weight=0.5
    ),
    "DPO sigmoid, apo_zero and nll": _dpo(
        {"sigmoid": 0.7, "apo_zero": 0.3},
        {"loss_type": ["sigmoid", "apo_zero", "sft"], "loss_weights": [0.7, 0.3, 0.2]},
        sft_weight=0.2,
    ),
    "KTO": Case(
        "kto", {"loss": "kto", "undesirable_weight": 1.5},
        {"loss_type": "kto", "beta": 0.1, "undesirable_weight": 1.5}, unpaired=True,
    ),
    "KTO apo_zero_unpaired": Case(
        "kto", {"loss": "apo_zero_unpaired", "desirable_weight": 1.2},
        {"loss_type": "apo_zero_unpaired", "beta": 0.1, "desirable_weight": 1.2}, unpaired=True,
    ),
    "ORPO": Case("orpo", {"loss": "orpo"}, {"beta": 0.1}, short_prompts=True),
    "SimPO": Case(
        "cpo", {"loss": "simpo"},
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    ),
    "reward": Case("reward", {"center": 0.0}, {}),
    "reward, margin and centring": Case(
        "reward", {"center": 0.01, "margin": True}, {"center_rewards_coefficient": 0.01},
        margins=True,
    ),
}  # fmt: skip
DRY = ("DPO sigmoid", "KTO", "reward, margin and centring")


@dataclass
class Job:
    """One run, as TRL gets it."""

    base: str
    trainer: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    out: str
    learning_rate: float
    steps: int
    micro_batch_size: int
    accumulation: int
    max_length: int = LENGTH
    pad_token: str = PAD_TOKEN
    threads: int = field(default_factory=torch.get_num_threads)


class Recorder(L.Callback):
    """What is logged of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.steps):
            # The module's own hook, which logs and resets, is next.
            self.steps.append({
                "loss": float(module.train_loss.compute()), "grad_norm": float(module.grad_norm),
                **{k: float(v) for k, v in module.rewards().items()},
            })  # fmt: skip


def ours(job: Job, case: Case) -> list[dict[str, float]]:
    """Run the job with our module on packed trees; return what every step logs."""
    L.seed_everything(1, verbose=False)
    kind: Any = RewardModule if case.trainer == "reward" else DPOModule
    module = kind(
        job.base, learning_rate=job.learning_rate, schedule="linear", warmup=0.0, weight_decay=0.0,
        grad_clip=1.0, compile=False, activation_checkpointing=0.0, validate_first=False,
        **case.ours,
    )  # fmt: skip
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=job.steps, logger=False, callbacks=[recorder],
        accumulate_grad_batches=2, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False,
    )  # fmt: skip
    start = Transformer.from_pretrained(job.base, torch.float32).eval()
    trainer.fit(module, DataLoader(batches(job, case, start), batch_size=None))
    return recorder.steps


def batches(job: Job, case: Case, start: Transformer) -> list[dict[str, Any]]:
    """Two micro-batches of packed trees a step, with the reference's log-probabilities."""
    made = []
    for begin in range(0, len(job.rows), PAIRS):
        rows = job.rows[begin : begin + PAIRS]
        trees = [tree_of(row) for row in rows]
        whole = conversations(trees)
        names = {"good": "label"} if case.unpaired else {"margin": "margin"}
        facts = {
            ours: np.array([row.get(theirs, np.nan) for row in rows], np.float32)
            for ours, theirs in names.items()
        }
        chosen_tokens = 0 if case.unpaired else sum(len(row["chosen_ids"]) for row in rows)
        # Three examples in the first micro-batch, one in the second.
        for places in (np.arange(PAIRS - 1), np.array([PAIRS - 1])):
            packed = pack(whole.lengths, places, LENGTH)
            dataset = AnswerRows(whole, packed, LENGTH, 0, facts)
            batch: dict[str, Any] = stack_answers([dataset[i] for i in range(len(dataset))])
            batch |= {"step_tokens": PAIRS, "step_chosen_tokens": chosen_tokens}
            add_reference(batch, start)
            if case.unpaired and len(places) > 1:
                rotated = MismatchedAnswers(whole, [list(range(PAIRS))], LENGTH, 0)
                batch["mismatched"] = rotated.batches(0, 2, 0, 1)
                for one in batch["mismatched"]:
                    add_reference(one, start)
            made.append(batch)
    return made


def tree_of(row: dict[str, Any]) -> Tree:
    """The pair, or the judged answer, as a tree."""
    answers = [row[key] for key in ("chosen_ids", "rejected_ids", "completion_ids") if key in row]
    paths = [TokenPath(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in answers]
    return answers_tree(np.array(row["prompt_ids"], np.int32), paths)


def conversations(trees: list[Tree]) -> Conversations:
    arrays = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in TREE_ARRAYS}
    return Conversations(**arrays, offsets=np.cumsum([0, *map(len, trees)]).astype(np.int64))


@torch.no_grad()
def add_reference(batch: dict[str, Tensor], start: Transformer) -> None:
    batch["reference_logps"] = answer_logps(start, batch)[0]


def make_rows(case: Case, count: int, vocabulary: int) -> list[dict[str, Any]]:
    """Ragged rows of random ids; every answer ends with <|im_end|>."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(draw.randint(low, high))]

    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt = ids(1, 1) if case.short_prompts else ids(6, 32)
        if case.unpaired:
            answer, good = [*ids(2, 24), 2], number % PAIRS != 1
            rows.append({"prompt_ids": prompt, "completion_ids": answer, "label": good})
            continue
        row = {"prompt_ids": prompt, "chosen_ids": [*ids(2, 24), 2],
               "rejected_ids": [*ids(2, 24), 2]}  # fmt: skip
        if case.margins:
            row["margin"] = draw.random()
        rows.append(row)
    return rows


def rows_for_trl(case: Case, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the columns that TRL's preparation would add."""
    if case.trainer == "reward":  # whole texts
        return [
            {**row, **{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"]
                       for side in ("chosen", "rejected")}}
            for row in rows
        ]  # fmt: skip
    if case.trainer in ("orpo", "cpo"):  # their own preparation wants texts to be there
        return [{**row, "prompt": "p", "chosen": "c", "rejected": "r"} for row in rows]
    if case.unpaired:
        for begin in range(0, len(rows), PAIRS):
            step = rows[begin : begin + PAIRS]
            for place, row in enumerate(step):
                row["KL_completion_ids"] = step[place - 1]["completion_ids"]
    return rows


def compare(job: Job, mine: list[dict[str, float]]) -> dict[str, Any]:
    """Differences between our run and TRL's, whose file lies in the job's folder."""
    theirs = json.loads((Path(job.out) / "run.json").read_text())
    logged = theirs["logged"]
    assert len(mine) == len(theirs["losses"]) == len(logged) == job.steps
    row = {
        "loss": max(map(difference, (step["loss"] for step in mine), theirs["losses"])),
        "gradient norm": max(
            difference(a["grad_norm"], b["grad_norm"]) for a, b in zip(mine, logged, strict=True)
        ),
    }
    if job.trainer == "reward":
        pairs = [([s["margin"] for s in mine], [s["margin"] for s in logged])]
    else:
        pairs = [
            ([s[f"{side}_reward"] for s in mine], [s[f"rewards/{side}"] for s in logged])
            for side in ("chosen", "rejected")
        ]
    row["rewards"] = max(
        max(abs(a - b) for a, b in zip(x, y, strict=True)) / max(map(abs, y)) for x, y in pairs
    )
    return {
        **row,
        "first loss": theirs["losses"][0],
        "last loss": theirs["losses"][-1],
        "versions": theirs["versions"],
    }


def run(folder: Path, case: Case, steps: int, rate: float) -> tuple[Job, list[dict[str, float]]]:
    folder.mkdir()
    rows = make_rows(case, DISTINCT * PAIRS, 49_000) * -(-steps // DISTINCT)
    rows = [dict(row) for row in rows[: steps * PAIRS]]
    job = Job(
        base=str(folder.parent / "base"), trainer=case.trainer, settings=case.theirs, rows=rows,
        out=str(folder), learning_rate=rate, steps=steps,
        micro_batch_size=1 if case.alone else PAIRS, accumulation=PAIRS if case.alone else 1,
    )  # fmt: skip
    return job, ours(job, case)


def run_peer(python: Path, jobs: list[tuple[Job, Case]]) -> None:
    """Run the jobs by TRL in one process, whose imports take longest."""
    worker = Path(__file__).parent / "contenders/preference_trl.py"
    files = []
    for job, case in jobs:
        files.append(Path(job.out) / "job.json")
        files[-1].write_text(json.dumps(asdict(job) | {"rows": rows_for_trl(case, job.rows)}))
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [str(python), str(worker), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "SmolLM2-135M"],
                        choices=["tiny", "SmolLM2-135M"])  # fmt: skip
    parser.add_argument("--losses", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has TRL")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.dry_run:
        args.models, args.losses, args.steps = ["tiny"], list(DRY), 2
    if not args.peer.exists():
        sys.exit(f"preference_parity: no {args.peer}; `make peers` makes it")
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            models = Path(temporary) / name
            models.mkdir()
            make_base(name, models / "base")
            made = [
                run(models / str(number), CASES[loss], args.steps, RATES[name])
                for number, loss in enumerate(args.losses)
            ]
            run_peer(
                args.peer,
                [(job, CASES[loss]) for (job, _), loss in zip(made, args.losses, strict=True)],
            )
            for (job, mine), loss in zip(made, args.losses, strict=True):
                row = table[f"{name}, {loss}"] = compare(job, mine)
                versions = row.pop("versions")
                values = "  ".join(f"{measure} {value:.1e}" for measure, value in row.items())
                print(f"{name}, {loss:32} {values}", flush=True)
            result = {"steps": args.steps, "bound": BOUND, "peer_versions": versions, "rows": table}
            if not args.dry_run:  # after each model: the second takes long
                print(f"wrote {write_result('preference_parity', result)}", flush=True)
    measures = ("loss", "gradient norm", "rewards")
    over = [key for key, row in table.items() if max(row[m] for m in measures) > BOUND]
    print(f"within {BOUND:g}: {len(table) - len(over)} of {len(table)}")
    sys.exit(f"not the same: {'; '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
