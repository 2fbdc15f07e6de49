"""litgpt on the prepared arrays: its GPT, initialisation, loss, AdamW and cosine schedule, as in
litgpt/pretrain.py.

The settings are those of its config_hub/pretrain: a small Llama shape in the manner of
tinystories.yaml (bf16-mixed, weight decay 0.1, betas 0.9 and 0.95, clipping at 1), with as many
weights outside the embeddings as nanochat's depth 4. The schedule follows the share of the time
that has passed, so that it ends with the time, 5% of it being the warm-up: the 1,000 to 2,000
warm-up steps of the published files are more than the whole run has. The learning rate is 3e-3, not
the published 4e-4 of a 1.1B model: after 147 steps it was better than 1e-3 (2.270 and 2.291 bits
per byte).
"""

from __future__ import annotations

import argparse

import harness
import lightning as L
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.pretrain import get_lr, initialize_weights
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from torch import Tensor

WARMUP_SHARE = 0.05
MIN_LR_SHARE = 0.1  # 4e-5 to 4e-4 in the defaults
MAX_NORM = 1.0


class LitGPT:
    def __init__(self, vocab_size: int, args: argparse.Namespace) -> None:
        config = Config(
            name="small-llama",
            block_size=args.seq_len,
            vocab_size=vocab_size,
            padding_multiple=64,
            n_layer=4,
            n_embd=256,
            n_head=4,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=688,
        )
        self.fabric = L.Fabric(accelerator="cpu", devices=1, precision=args.precision)
        self.fabric.seed_everything(args.seed, verbose=False)
        with self.fabric.init_module(empty_init=True):
            self.model = GPT(config)
        initialize_weights(self.fabric, self.model, n_layer=config.n_layer, n_embd=config.n_embd)
        self.initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.compiled = self.fabric.setup(torch.compile(self.model))

        self.lr = args.lr
        settings = {"lr": args.lr, "weight_decay": 0.1, "betas": [0.9, 0.95]}
        adamw = {"class_path": "torch.optim.AdamW", "init_args": settings}
        self.optimizer = instantiate_torch_optimizer(adamw, self.compiled.parameters(), fused=False)
        self.wrapped_optimizer = self.fabric.setup_optimizers(self.optimizer)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.settings = {"precision": args.precision, "lr": args.lr, "depth": config.n_layer}

    def step(self, inputs: Tensor, targets: Tensor, iteration: int, progress: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = get_lr(self.lr, progress, WARMUP_SHARE, 1.0, self.lr * MIN_LR_SHARE)
        loss = chunked_cross_entropy(self.compiled(inputs), targets)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.compiled, self.wrapped_optimizer, max_norm=MAX_NORM)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        return loss.item()

    def reset(self) -> None:
        self.model.load_state_dict(self.initial)
        self.optimizer.state.clear()

    def logits(self, tokens: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.model(tokens)


def main() -> None:
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default="bf16-mixed")
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    prepared = harness.load(args.prepared)
    harness.run(LitGPT(len(prepared.token_bytes), args), prepared, args)


if __name__ == "__main__":
    main()
