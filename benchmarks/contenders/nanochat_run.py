"""nanochat on the prepared arrays: its model, its MuonAdamW and its schedules, from a checkout
given by path.

What scripts/base_train.py of the checkout computes for `--depth 4 --max-seq-len 512
--total-batch-size 4096 --window-pattern L` is computed here the same way. One thing differs, in its
favour: the schedules follow the share of the time that has passed, so that they end with the time
whatever the speed, where base_train is told a number of steps.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import harness
import torch
from torch import Tensor

# base_train's defaults
ASPECT_RATIO = 64
TARGET_PARAM_DATA_RATIO = 12
REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19
WEIGHT_DECAY = 0.28
LEARNING_RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
WARMUP_STEPS = 40
WARMDOWN_RATIO = 0.65
FINAL_LR_FRACTION = 0.05


def lr_multiplier(iteration: int, progress: float) -> float:
    """Linear warm-up, constant, linear warm-down over the last 65%."""
    if iteration < WARMUP_STEPS:
        return (iteration + 1) / WARMUP_STEPS
    if progress <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - progress) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRACTION


def muon_momentum(iteration: int, progress: float) -> float:
    """0.85 to 0.97 in 400 steps, then down to 0.90 with the warm-down."""
    if iteration < 400:
        return 0.85 + (0.97 - 0.85) * iteration / 400
    down = max(0.0, (progress - (1 - WARMDOWN_RATIO)) / WARMDOWN_RATIO)
    return 0.97 + (0.90 - 0.97) * down


class Nanochat:
    def __init__(self, vocab_size: int, args: argparse.Namespace) -> None:
        from nanochat.common import COMPUTE_DTYPE

        torch.manual_seed(args.seed)
        self.model = self._meta_model(vocab_size, args.depth, args)
        self.model.to_empty(device="cpu")
        self.model.init_weights()
        self.initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.compiled = torch.compile(self.model, dynamic=False)

        horizon = self._horizon(self.model)
        batch_ratio = args.tokens_per_step / REFERENCE_BATCH
        reference_horizon = self._horizon(self._meta_model(vocab_size, REFERENCE_DEPTH, args))
        self.weight_decay = WEIGHT_DECAY * math.sqrt(batch_ratio) * reference_horizon / horizon
        rates = {
            name: rate * math.sqrt(batch_ratio) * args.lr_scale
            for name, rate in LEARNING_RATES.items()
        }
        self.optimizer = self.model.setup_optimizer(**rates, weight_decay=self.weight_decay)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.settings = {
            "precision": str(COMPUTE_DTYPE).removeprefix("torch."),
            "depth": args.depth,
            "head_dim": args.head_dim,
            "lr_scale": args.lr_scale,
        }

    @staticmethod
    def _meta_model(vocab_size: int, depth: int, args: argparse.Namespace) -> torch.nn.Module:
        from nanochat.gpt import GPT, GPTConfig

        width = math.ceil(depth * ASPECT_RATIO / args.head_dim) * args.head_dim
        heads = width // args.head_dim
        config = GPTConfig(args.seq_len, vocab_size, depth, heads, heads, width, window_pattern="L")
        with torch.device("meta"):
            return GPT(config)

    @staticmethod
    def _horizon(model: torch.nn.Module) -> float:
        """The compute-optimal number of tokens, in which base_train scales the weight decay."""
        counts = model.num_scaling_params()
        return TARGET_PARAM_DATA_RATIO * (counts["transformer_matrices"] + counts["lm_head"])

    def step(self, inputs: Tensor, targets: Tensor, iteration: int, progress: float) -> float:
        loss = self.compiled(inputs, targets)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_multiplier(iteration, progress)
            if group["kind"] == "muon":
                group["momentum"] = muon_momentum(iteration, progress)
                group["weight_decay"] = self.weight_decay * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return loss.item()

    def reset(self) -> None:
        self.model.load_state_dict(self.initial)
        self.optimizer.state.clear()

    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


def main() -> None:
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--nanochat", type=Path, required=True, help="checkout of karpathy/nanochat"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="NANOCHAT_DTYPE"
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument(
        "--head-dim", type=int, default=64, help="runs/runcpu.sh has 64, base_train 128"
    )
    parser.add_argument("--lr-scale", type=float, default=1.0, help="times its own learning rates")
    args = parser.parse_args()
    os.environ["NANOCHAT_DTYPE"] = args.dtype  # read when nanochat.common is imported
    sys.path.insert(0, str(args.nanochat))
    prepared = harness.load(args.prepared)
    harness.run(Nanochat(len(prepared.token_bytes), args), prepared, args)


if __name__ == "__main__":
    main()
