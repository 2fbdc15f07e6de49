"""A training step on a CPU: ours against transformers and litgpt, same shape, batch, weights' and
products' type.

    make peers
    python benchmarks/cpu_step.py

A step is forward, backward and the same fused AdamW for all; eager against eager, compiled against
compiled. Every contender has a process of its own that waits while another takes its turn, step by
step, so that a machine that slows down slows all of them. A ratio is the median over rounds of
theirs / ours of that round. "floor" is what the shape's matrix products, SDPA, cross-entropy and
the optimizer take through torch's own operators, each timed alone and added: ours may be below it
where it has better ones. Peak memory is the growth of the process's resident set from before the
model is built; it is taken at four times the largest shape's tokens too, where logits and
activations outweigh what the optimizer keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import resident
import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Shape:
    """A Llama: RMSNorm, rotary positions, SwiGLU, no biases, an untied head."""

    name: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    batch: int
    seq_len: int


SHAPES = (
    Shape("5M, vocabulary 4k", 4096, 256, 4, 4, 4, 688, 8, 256),
    Shape("30M, grouped queries, vocabulary 16k", 16384, 512, 6, 8, 2, 1408, 4, 512),
    Shape("124M, vocabulary 50k", 50304, 768, 12, 12, 12, 2048, 2, 512),
)
MEMORY_SHAPE = replace(SHAPES[2], name="124M, vocabulary 50k, 4,096 tokens", batch=8)
CONTENDERS = ("ours", "transformers", "litgpt")


def network(
    contender: str, shape: Shape, compiled: bool
) -> tuple[torch.nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """The model, and its mean loss over (batch, seq_len) inputs and labels, as that project's
    training computes it."""
    if contender == "ours":
        from lit_llm import Transformer, TransformerConfig
        from lit_llm.models.parallel.parallelize import parallelize

        model = Transformer(TransformerConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, num_layers=shape.layers,
            num_heads=shape.heads, num_kv_heads=shape.kv_heads, intermediate_size=shape.mlp,
            max_seq_len=shape.seq_len,
        ))  # fmt: skip
        parallelize(model, compile=compiled)
        return model, lambda inputs, labels: model.loss(inputs, labels) / labels.numel()
    if contender == "transformers":
        import transformers

        theirs: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.mlp, max_position_embeddings=shape.seq_len,
            attn_implementation="sdpa", use_cache=False,
        ))  # fmt: skip
        run = torch.compile(theirs) if compiled else theirs
        # Labels are already those of the next position: shift_labels says so.
        return (
            theirs,
            lambda inputs, labels: run(input_ids=inputs, labels=labels, shift_labels=labels).loss,
        )
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    gpt = GPT(Config(
        name="llama", block_size=shape.seq_len, vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab, n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads,
        n_query_groups=shape.kv_heads, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=shape.mlp,
    ))  # fmt: skip
    forward = torch.compile(gpt) if compiled else gpt
    return gpt, lambda inputs, labels: chunked_cross_entropy(forward(inputs), labels, chunk_size=0)


def work(args: argparse.Namespace) -> None:
    """Be a contender: a line of JSON with the seconds of a step for each line read."""
    warnings.filterwarnings("ignore")
    shape, dtype = Shape(*json.loads(args.shape)), getattr(torch, args.dtype)
    torch.manual_seed(0)
    import_only = network(
        args.work, replace(shape, vocab=64, width=64, layers=1, heads=2, kv_heads=1, mlp=64), False
    )
    del import_only
    before = resident.begin()
    model, loss_of = network(args.work, shape, args.compile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = torch.randint(0, shape.vocab, (shape.batch, shape.seq_len))
    labels = torch.randint(0, shape.vocab, (shape.batch, shape.seq_len))
    for _ in sys.stdin:
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_of(inputs, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak_bytes": resident.peak() - before,
                          "parameters": sum(p.numel()for p in model.parameters())}),
                          flush=True)  # fmt: skip


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, shape: Shape, dtype: str, compiled: bool, peers: str):
        fields = json.dumps([getattr(shape, name) for name in Shape.__dataclass_fields__])
        command = [peers if contender == "litgpt" else sys.executable, str(HERE / "cpu_step.py"),
                   "--work", contender, "--shape", fields, "--dtype", dtype]  # fmt: skip
        self.process = subprocess.Popen(
            [*command, "--compile"] if compiled else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """One step's seconds, and the peak memory so far."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) and not line.startswith('{"seconds"'):
            pass
        if not line:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise SystemExit(f"{command} failed")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def floor(shape: Shape, dtype: torch.dtype) -> float:
    """Seconds of a step's parts by torch's own operators, each timed alone, operands in cache or as
    they fall."""
    N, head = shape.batch * shape.seq_len, shape.width // shape.heads
    kv = shape.kv_heads * head
    matrices = [(shape.width, shape.width)] * 2 + [(shape.width, kv)] * 2
    matrices += [(shape.width, shape.mlp)] * 2 + [(shape.mlp, shape.width)]
    total = 0.0
    for fan_in, fan_out in matrices:
        total += shape.layers * _products(N, fan_in, fan_out, dtype)
    total += _products(N, shape.width, shape.vocab, dtype)
    q = torch.randn(shape.batch, shape.heads, shape.seq_len, head, dtype=dtype, requires_grad=True)
    k = torch.randn(
        shape.batch, shape.kv_heads, shape.seq_len, head, dtype=dtype, requires_grad=True
    )
    v, grouped = torch.randn_like(k).requires_grad_(), shape.heads != shape.kv_heads

    def attention() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).sum().backward()

    total += shape.layers * _seconds(attention)
    logits = torch.randn(N, shape.vocab, requires_grad=True)
    labels = torch.randint(0, shape.vocab, (N,))
    total += _seconds(lambda: F.cross_entropy(logits, labels).backward())
    count = shape.layers * sum(a * b for a, b in matrices) + 2 * shape.vocab * shape.width
    weights = torch.zeros(count, requires_grad=True)
    weights.grad = torch.zeros(count)
    return total + _seconds(torch.optim.AdamW([weights], fused=True).step)


def _products(N: int, fan_in: int, fan_out: int, dtype: torch.dtype) -> float:
    x, w, g = (
        torch.randn(*size, dtype=dtype) for size in ((N, fan_in), (fan_out, fan_in), (N, fan_out))
    )
    return _seconds(lambda: F.linear(x, w)) + _seconds(lambda: g @ w) + _seconds(lambda: g.T @ x)


def _seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def compare(shape: Shape, dtype: str, compiled: bool, args: argparse.Namespace) -> dict[str, Any]:
    """All contenders on one shape, in turns."""
    workers = {
        name: Worker(name, shape, dtype, compiled, args.peers_python) for name in args.contenders
    }
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, float] = {}
    for round_number in range(args.warmup + args.rounds):
        for name, worker in workers.items():
            said = worker.step()
            peaks[name] = said["peak_bytes"]
            if round_number >= args.warmup:
                seconds[name].append(said["seconds"])
    for worker in workers.values():
        worker.close()
    row: dict[str, Any] = {
        "shape": shape.__dict__, "dtype": dtype, "compiled": compiled,
        "floor_ms": floor(shape, getattr(torch, dtype)) * 1e3,
        "ms": {name: statistics.median(times) * 1e3 for name, times in seconds.items()},
        "peak_bytes": peaks,
        "speed_of_ours": {
            name: statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True))
            for name, times in seconds.items()
        },
        "memory_of_ours": {name: peaks["ours"] / peak for name, peak in peaks.items()},
    }  # fmt: skip
    said = ", ".join(
        f"{name} {row['ms'][name]:.0f} ms {row['peak_bytes'][name] / 1e9:.2f} GB "
        f"(ours is {row['speed_of_ours'][name]:.2f} times as fast with "
        f"{row['memory_of_ours'][name]:.2f} of the memory)"
        for name in args.contenders if name != "ours"
    )  # fmt: skip
    print(f"{shape.name}, {dtype}, {'compiled' if compiled else 'eager'}: ours "
          f"{row['ms']['ours']:.0f} ms "
          f"{peaks['ours'] / 1e9:.2f} GB, floor {row['floor_ms']:.0f} ms; "
          f"{said}", flush=True)  # fmt: skip
    return row


def compare_memory(
    shape: Shape, dtype: str, compiled: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """Peak memory of two steps of each, the optimizer's states being there in the second; one
    process at a time."""
    peaks: dict[str, float] = {}
    for name in args.contenders:
        worker = Worker(name, shape, dtype, compiled, args.peers_python)
        peaks[name] = max(worker.step()["peak_bytes"] for _ in range(2))
        worker.close()
    row = {"shape": shape.__dict__, "dtype": dtype, "compiled": compiled, "peak_bytes": peaks,
           "memory_of_ours": {name: peaks["ours"] / peak for name,
                              peak in peaks.items()}}  # fmt: skip
    said = ", ".join(f"{name} {peak / 1e9:.2f} GB (ours is {row['memory_of_ours'][name]:.2f} of "
                     f"it)"  # type: ignore[index]
                     for name, peak in peaks.items() if name != "ours")  # fmt: skip
    print(
        f"{shape.name}, {dtype}, {'compiled' if compiled else 'eager'}: ours "
        f"{peaks['ours'] / 1e9:.2f} GB; {said}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3, help="steps of each that are not counted")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument(
        "--shapes", type=int, nargs="+", default=list(range(len(SHAPES))), help="which of the three"
    )
    parser.add_argument(
        "--measure", nargs="+", choices=["speed", "memory"], default=["speed", "memory"]
    )
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--peers-python", default=str(HERE.parent / ".venv-peers/bin/python"))
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny shape, one round, without litgpt, no file"
    )
    for hidden in ("--work", "--shape", "--dtype"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    shapes, large = [SHAPES[i] for i in args.shapes], MEMORY_SHAPE
    if args.dry_run:
        shapes = [large := Shape("tiny", 300, 64, 2, 4, 2, 128, 2, 16)]
        args.dtypes, args.modes = ["float32"], ["eager"]
        args.rounds, args.warmup, args.contenders = 1, 1, ["ours", "transformers"]
    kinds = [(dtype, mode == "compiled") for dtype in args.dtypes for mode in args.modes]
    rows = [
        compare(shape, *kind, args) for kind in kinds for shape in shapes if "speed" in args.measure
    ]
    memory_rows = [compare_memory(large, *kind, args) for kind in kinds if "memory" in args.measure]
    if not args.dry_run:
        from record import write_result

        result = {"rounds": args.rounds, "rows": rows, "memory_rows": memory_rows}
        print(f"wrote {write_result('cpu_step', result)}")


if __name__ == "__main__":
    main()
