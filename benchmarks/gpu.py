"""Training speed on one GPU: tokens a second, MFU and peak memory; see gpu.sh.

MFU is the project's one formula (`lit_llm.models.flops`): 6 x matrix parameters, head included and input embedding not,
plus causal attention counted once, a token, over the dense bfloat16 peak of the device, also where products are in 8
bits; where documents are masked it counts the attention of whole rows all the same. A row is the median of timed blocks
of steps after the compiler is done; the batch is the largest power of two that fits. Contenders of one shape take
turns, a process each, so that memory and compiler of one do not touch the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the machine with the GPU has the checkout, not the package

LLAMA = {"vocab_size": 50304, "tie_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "50M": {"preset": "autoresearch-50m"},
    "350M": {**LLAMA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 2816},
    "1.2B": {**LLAMA, "hidden_size": 2048, "num_layers": 22, "num_heads": 16, "intermediate_size": 5632},
    "3B": {**LLAMA, "hidden_size": 3072, "num_layers": 26, "num_heads": 24, "intermediate_size": 8192},
    "8B": {"preset": "llama-3-8b"},
    "d12": {"preset": "nano-5m", "vocab_size": 32768, "hidden_size": 768, "num_layers": 12, "num_heads": 6},
    "tiny": {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
}  # fmt: skip
# Suite -> shape, contenders.
SUITES: dict[str, list[tuple[str, list[str]]]] = {
    "bf16": [(name, ["ours", "trainer"]) for name in ("50M", "350M", "1.2B", "3B")],
    "fp8": [(name, ["ours", "fp8"]) for name in ("1.2B", "3B")],
    "lora": [("8B", ["lora"])],
    "peers": [
        ("350M", ["ours", "transformers", "litgpt"]),
        ("1.2B", ["ours", "transformers", "litgpt"]),
        ("d12", ["ours", "nanochat"]),
    ],
    # Rows of documents that do not see each other: skipped by FlexAttention, and through SDPA with a mask of all pairs.
    "documents": [("350M", ["ours", "documents", "documents sdpa"])],
}
PEERS = ("transformers", "litgpt", "nanochat")
Step = Callable[[Tensor], Any]
DOCUMENT = 512
"""Tokens a document in the mean; lengths are geometric."""


def fields_of(name: str, seq_len: int) -> dict[str, Any]:
    return {**SHAPES[name], "max_seq_len": seq_len}


def draw_documents(batch: int, seq_len: int, device: torch.device) -> Tensor:
    """document_ids of rows in which a document ends after every token with one probability."""
    return (torch.rand(batch, seq_len, device=device) < 1 / DOCUMENT).long().cumsum(1)


def bare(args: argparse.Namespace, device: torch.device) -> tuple[Step, str]:
    """A loop over our parts, and what computes attention in it."""
    from lit_llm.models.backends import choose_attention
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.float8 import SMALLEST, convert_to_float8
    from lit_llm.models.lora import LoRAConfig, apply_lora
    from lit_llm.models.parallelize import parallelize
    from lit_llm.models.transformer import Transformer
    from lit_llm.training.optimizers import MuonAdamW, parameter_groups

    lora, documents = args.work == "lora", args.work.startswith("documents")
    backends = choose_attention(device, torch.bfloat16, "sdpa" if args.work == "documents sdpa" else "auto")
    with device:
        model = Transformer(TransformerConfig.from_dict(fields_of(args.shape, args.seq_len)))
        if lora:
            model.to(torch.bfloat16)
            apply_lora(model, LoRAConfig(rank=16))
    if args.work == "fp8":
        convert_to_float8(model, smallest=16 if args.shape == "tiny" else SMALLEST)
    parallelize(model, backends=backends, compile=not args.eager, recompute=1.0 if lora else 0.0)
    optimizer = (
        torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
        if lora
        else MuonAdamW(parameter_groups(model, "muon_adamw", 0.02, 0.0))
    )

    def step(ids: Tensor) -> None:
        document_ids = draw_documents(args.batch, args.seq_len, device) if documents else None
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:], document_ids) / ids[:, 1:].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, str(backends)


def time_trainer(args: argparse.Namespace, device: torch.device) -> tuple[float, str]:
    """Seconds a step of PretrainModule under the Trainer with the default callbacks that touch every step, and what
    computes attention in it."""
    import lightning as L

    from lit_llm import PretrainModule, SpikeGuard, ThroughputCallback

    class Clock(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            if trainer.global_step == args.warmup:
                synchronize(device)
                self.began = time.perf_counter()

        def on_train_end(self, *rest: Any) -> None:
            synchronize(device)
            self.seconds = (time.perf_counter() - self.began) / args.steps

    clock, steps = Clock(), args.warmup + args.steps
    ids = torch.randint(0, 300, (args.batch, args.seq_len + 1))
    rows = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids] * steps
    loader = torch.utils.data.DataLoader(rows, batch_size=args.batch, pin_memory=device.type == "cuda")
    module = PretrainModule(fields_of(args.shape, args.seq_len), compile=not args.eager, tokens=1e9,
                            global_batch_tokens=args.batch * args.seq_len)  # fmt: skip
    L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, precision="bf16-mixed", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[SpikeGuard(), ThroughputCallback(), clock],
    ).fit(module, loader)  # fmt: skip
    return clock.seconds, str(module.network.backends)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def work(args: argparse.Namespace) -> None:
    """Be one contender at one batch: a line of JSON."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.work == "trainer":
        seconds, attention = time_trainer(args, device)
    else:
        if args.work in PEERS:
            sys.path.insert(0, str(HERE / "contenders"))
            import gpu_steps

            from lit_llm.models.config import TransformerConfig

            config = TransformerConfig.from_dict(fields_of(args.shape, args.seq_len))
            step, attention = getattr(gpu_steps, args.work)(config, device, not args.eager), "its own"
        else:
            step, attention = bare(args, device)
        ids = torch.randint(0, 300, (args.batch, args.seq_len + 1), device=device)
        for _ in range(args.warmup):
            step(ids)
        times = []
        for _ in range(3):
            synchronize(device)
            began = time.perf_counter()
            for _ in range(max(1, args.steps // 3)):
                step(ids)
            synchronize(device)
            times.append((time.perf_counter() - began) / max(1, args.steps // 3))
        seconds = statistics.median(times)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "attention": attention}))


def measure(contender: str, shape: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """The largest batch that fits, and what it makes; None where the contender is not at hand."""
    from lit_llm.models import flops
    from lit_llm.models.config import TransformerConfig

    batch = 2 if args.dry_run else args.batch
    while True:
        python = args.peers_python if contender in ("litgpt", "nanochat") else sys.executable
        command = [python, __file__, "--suite", args.suite, "--work", contender, "--shape", shape,
                   "--batch", batch, "--seq-len", args.seq_len, "--warmup", args.warmup,
                   "--steps", args.steps]  # fmt: skip
        done = subprocess.run(
            [*map(str, command), *(["--eager"] if args.eager else [])], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            break
        if contender in PEERS and (f"No module named '{contender}" in done.stderr or "'NANOCHAT'" in done.stderr):
            print(f"{shape:>5} {contender}: not at hand, left out", flush=True)
            return None
        if "out of memory" not in done.stderr.lower() or batch == 1:
            raise SystemExit(f"{contender} at {shape} failed:\n{done.stderr[-3000:]}")
        batch //= 2
    row = {"contender": contender, "shape": shape, "batch": batch, **json.loads(done.stdout.splitlines()[-1])}
    config = TransformerConfig.from_dict(fields_of(shape, args.seq_len))
    row["tokens_per_second"] = batch * args.seq_len / row["seconds"]
    row["flops_per_token"] = flops.flops_per_token(config, args.seq_len)
    if contender == "lora":  # the frozen weights have no gradient of their own
        row["flops_per_token"] -= 2 * flops.matrix_parameters(config)
    if torch.cuda.is_available():
        peak, _ = flops.peak_flops(torch.device("cuda"))
        row["mfu"] = row["tokens_per_second"] * row["flops_per_token"] / peak
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
    print(f"{shape:>5} {contender:14} batch {batch:3}  {row['tokens_per_second']:10,.0f} tokens/s  MFU {mfu}  "
          f"{row['peak_bytes'] / 1e9:.1f} GB  attention: {row['attention']}", flush=True)  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument("--batch", type=int, default=64, help="tried first; halved until it fits")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--eager", action="store_true")
    peers = HERE.parent / ".venv-peers/bin/python"
    parser.add_argument("--peers-python", default=str(peers) if peers.exists() else sys.executable,
                        help="interpreter that has litgpt; nanochat's checkout is $NANOCHAT")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, no file")
    for hidden in ("--work", "--shape"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    pairs = SUITES[args.suite]
    if args.dry_run:
        contenders = list(dict.fromkeys(contender for _, some in pairs for contender in some))
        pairs, args.seq_len, args.warmup, args.steps, args.eager = [("tiny", contenders)], 16, 1, 3, True
    elif not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run tries the script on a CPU")
    if args.suite == "fp8":
        print("MFU of both is over the bfloat16 peak")
    rows = []
    for shape, contenders in pairs:
        first, *others = (row for contender in contenders if (row := measure(contender, shape, args)))
        for row in others:
            row["ratio"] = row["tokens_per_second"] / first["tokens_per_second"]
            print(f"{shape:>5} {row['contender']} is {row['ratio']:.2f} x {first['contender']}", flush=True)
        rows += [first, *others]
    if not args.dry_run:
        from record import write_result

        result = {"suite": args.suite, "device": torch.cuda.get_device_name(), "seq_len": args.seq_len, "rows": rows}
        file = write_result(f"gpu_{args.suite}", result)
        if out := os.environ.get("OUT"):
            Path(out, file.name).write_text(file.read_text())
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
