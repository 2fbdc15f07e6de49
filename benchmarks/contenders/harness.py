"""What every contender shares: its arguments, the packed batches, the clock and the result file.

A contender is a script run as `python X_run.py --prepared P --seconds S --seed N --out O [its own
options]`. It brings a `Contender`; `run` warms it up, puts it back to the start, trains it for the
given time, scores it and writes a JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from bpb import bits_per_byte
from torch import Tensor

WARMUP_STEPS = 5  # enough to compile every graph; the first steps also fault the memory in


class Prepared(NamedTuple):
    """One corpus as arrays: streams `[eos doc1 eos doc2 ...]` of token ids and what each id stands
    for."""

    train: np.ndarray  # (tokens,) uint16 or int32
    validation: np.ndarray  # (tokens,) likewise
    token_bytes: np.ndarray  # (vocab,) int32, 0 for special tokens


class Contender(Protocol):
    """A model with its own optimizer and schedule."""

    settings: dict[str, object]  # what the table and the JSON say about it
    parameters: int

    def step(self, inputs: Tensor, targets: Tensor, iteration: int, progress: float) -> float:
        """Train on (sequences, seq_len) int64; progress in [0, 1) is the share of the time used.
        Returns the loss."""

    def reset(self) -> None:
        """Back to the initial weights and an empty optimizer state."""

    def logits(self, tokens: Tensor) -> Tensor:
        """(batch, seq) int64 -> (batch, seq, vocab)."""


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--prepared", type=Path, required=True, help="arrays written by quality_per_second.py"
    )
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="training time, compilation not counted"
    )
    parser.add_argument(
        "--tokens", type=float, help="train on this many tokens, however long that takes"
    )
    parser.add_argument("--seed", type=int, default=0, help="initial weights and order of the data")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    return parser


def load(path: Path) -> Prepared:
    with np.load(path) as arrays:
        return Prepared(arrays["train"], arrays["validation"], arrays["token_bytes"])


def batches(
    stream: np.ndarray, sequences: int, seq_len: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of the packed stream in a new random order each epoch: inputs, targets (sequences,
    seq_len) int64."""
    blocks = (len(stream) - 1) // seq_len
    generator = np.random.default_rng(seed)
    queue = np.empty(0, np.int64)
    while True:
        while len(queue) < sequences:
            queue = np.concatenate([queue, generator.permutation(blocks)])
        starts, queue = queue[:sequences] * seq_len, queue[sequences:]
        rows = torch.from_numpy(
            np.stack([stream[s : s + seq_len + 1] for s in starts]).astype(np.int64)
        )
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def run(contender: Contender, prepared: Prepared, args: argparse.Namespace) -> None:
    """Train for args.seconds, or on args.tokens, and write bits per byte, tokens, steps and the
    rest to args.out."""
    sequences = args.tokens_per_step // args.seq_len
    began = time.perf_counter()
    warm = batches(prepared.train, sequences, args.seq_len, args.seed)
    for _ in range(WARMUP_STEPS):
        step_began = time.perf_counter()
        contender.step(*next(warm), 0, 0.0)
        step_seconds = time.perf_counter() - step_began
    contender.reset()
    gc.collect()
    gc.freeze()  # collector pauses are nobody's quality: the same for all
    warmup_seconds = time.perf_counter() - began

    losses: list[float] = []
    stream = batches(prepared.train, sequences, args.seq_len, args.seed)
    began = time.perf_counter()
    elapsed = 0.0
    # A step that would end after the time is not begun, so nobody trains for longer than the
    # others.
    steps = None if args.tokens is None else int(args.tokens // args.tokens_per_step)
    while len(losses) < steps if steps else elapsed + step_seconds <= args.seconds:
        progress = len(losses) / steps if steps else elapsed / args.seconds
        losses.append(contender.step(*next(stream), len(losses), progress))
        elapsed = time.perf_counter() - began
        step_seconds = elapsed / len(losses)
        if len(losses) % 50 == 0:
            print(
                f"{elapsed:6.1f} s  step {len(losses):5d}  loss {np.mean(losses[-50:]):.4f}",
                flush=True,
            )
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"loss became {losses[-1]} at step {len(losses)}")

    score = bits_per_byte(contender.logits, prepared.validation, prepared.token_bytes)
    result = {
        "bits_per_byte": score,
        "seconds": elapsed,
        "steps": len(losses),
        "tokens_per_step": args.tokens_per_step,
        "seq_len": args.seq_len,
        "tokens": len(losses) * args.tokens_per_step,
        "tokens_per_second": len(losses) * args.tokens_per_step / elapsed,
        "parameters": contender.parameters,
        "final_loss": float(np.mean(losses[-50:])),
        "warmup_seconds": warmup_seconds,
        "seed": args.seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **contender.settings,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
