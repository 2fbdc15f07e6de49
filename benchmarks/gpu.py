"""Training speed on one GPU: tokens a second, MFU and peak memory; see gpu.sh.

MFU is the project's one formula (`lit_llm.models.flops`): 6 x matrix parameters, head included and input embedding not,
plus causal attention counted once, a token, over the dense bfloat16 peak of the device, also where products are in 8
bits. A row is the median of timed blocks of steps after the compiler is done; the batch is the largest power of two
that fits. Contenders of one shape take turns, a process each, so that memory and compiler of one do not touch the
other.
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
    "50M": {**LLAMA, "vocab_size": 8192, "hidden_size": 512, "num_layers": 8, "num_heads": 4, "intermediate_size": 2048,
            "mlp": "relu2"},
    "350M": {**LLAMA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 2816},
    "1.2B": {**LLAMA, "hidden_size": 2048, "num_layers": 22, "num_heads": 16, "intermediate_size": 5632},
    "3B": {**LLAMA, "hidden_size": 3072, "num_layers": 26, "num_heads": 24, "intermediate_size": 8192},
    "8B": {"preset": "llama-3-8b"},
    "tiny": {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
}  # fmt: skip
# Suite -> shape, contenders.
SUITES: dict[str, list[tuple[str, list[str]]]] = {
    "bf16": [(name, ["ours", "trainer"]) for name in ("50M", "350M", "1.2B", "3B")],
    "fp8": [(name, ["ours", "fp8"]) for name in ("1.2B", "3B")],
    "lora": [("8B", ["lora"])],
    "peers": [(name, ["ours", "transformers"]) for name in ("350M", "1.2B")],
}
Step = Callable[[Tensor], Any]


def fields_of(name: str, seq_len: int) -> dict[str, Any]:
    return {**SHAPES[name], "max_seq_len": seq_len}


def bare(name: str, seq_len: int, device: torch.device, compiled: bool, lora: bool, float8: bool) -> Step:
    """A loop over our parts."""
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.float8 import SMALLEST, convert_to_float8
    from lit_llm.models.lora import LoRAConfig, apply_lora
    from lit_llm.models.parallelize import parallelize
    from lit_llm.models.transformer import Transformer
    from lit_llm.training.optimizers import MuonAdamW, parameter_groups

    with device:
        model = Transformer(TransformerConfig.from_dict(fields_of(name, seq_len)))
        if lora:
            model.to(torch.bfloat16)
            apply_lora(model, LoRAConfig(rank=16))
    if float8:
        convert_to_float8(model, smallest=16 if name == "tiny" else SMALLEST)
    parallelize(model, compile=compiled, recompute=1.0 if lora else 0.0)
    optimizer = (
        torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4, fused=True)
        if lora
        else MuonAdamW(parameter_groups(model, "muon_adamw", 0.02, 0.0))
    )

    def step(ids: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def transformers_loop(name: str, seq_len: int, device: torch.device, compiled: bool) -> Step:
    """transformers' Llama of the shape in a plain loop with AdamW."""
    import transformers

    from lit_llm.models.config import TransformerConfig

    config = TransformerConfig.from_dict(fields_of(name, seq_len))
    with device:
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.intermediate_size, max_position_embeddings=seq_len, use_cache=False,
        ))  # fmt: skip
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> None:
        inputs, labels = ids[:, :-1], ids[:, 1:].contiguous()
        with torch.autocast(device.type, torch.bfloat16):
            loss = run(input_ids=inputs, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_trainer(args: argparse.Namespace, device: torch.device) -> float:
    """Seconds a step of PretrainModule under the Trainer with the default callbacks that touch every step."""
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
    return clock.seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def work(args: argparse.Namespace) -> None:
    """Be one contender at one batch: a line of JSON."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.work == "trainer":
        seconds = time_trainer(args, device)
    else:
        if args.work == "transformers":
            step = transformers_loop(args.shape, args.seq_len, device, not args.eager)
        else:
            step = bare(args.shape, args.seq_len, device, not args.eager, args.work == "lora", args.work == "fp8")
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
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def measure(contender: str, shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """The largest batch that fits, and what it makes."""
    from lit_llm.models import flops
    from lit_llm.models.config import TransformerConfig

    batch = 2 if args.dry_run else args.batch
    while True:
        command = [sys.executable, __file__, "--suite", args.suite, "--work", contender, "--shape", shape,
                   "--batch", batch, "--seq-len", args.seq_len, "--warmup", args.warmup,
                   "--steps", args.steps]  # fmt: skip
        done = subprocess.run(
            [*map(str, command), *(["--eager"] if args.eager else [])], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            break
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
    print(f"{shape:>5} {contender:12} batch {batch:3}  {row['tokens_per_second']:10,.0f} tokens/s  MFU {mfu}  "
          f"{row['peak_bytes'] / 1e9:.1f} GB", flush=True)  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=list(SUITES), required=True)
    parser.add_argument("--batch", type=int, default=64, help="tried first; halved until it fits")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, no file")
    for hidden in ("--work", "--shape"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    pairs = SUITES[args.suite]
    if args.dry_run:
        pairs, args.seq_len, args.warmup, args.steps, args.eager = [("tiny", pairs[0][1])], 16, 1, 3, True
    elif not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run tries the script on a CPU")
    if args.suite == "fp8":
        print("MFU of both is over the bfloat16 peak")
    rows = []
    for shape, contenders in pairs:
        first, *others = (measure(contender, shape, args) for contender in contenders)
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
