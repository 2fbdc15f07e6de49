"""Our side of quality_per_second.py: the shape, optimizer and schedule of
configs/pretrain/quickstart.yaml.

The bare loop over our parts, driven by the harness that drives the others; trainer_overhead.py
shows what the Trainer adds to such a loop.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import harness
import torch
import yaml
from torch import Tensor

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.transformer import Transformer
from lit_llm.training.optimizers import MuonAdamW, default_learning_rate, parameter_groups
from lit_llm.training.schedules import lr_multiplier

PRESET = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "quickstart.yaml"
RESOLUTION = 10_000  # the schedule is a function of steps; here of ten-thousandths of the time


class Ours:
    """A PretrainModule's parts without the Trainer."""

    def __init__(self, vocab_size: int, seed: int, changed: dict[str, Any]):
        preset = yaml.safe_load(PRESET.read_text())
        model_args = preset["model"]["init_args"]
        torch.manual_seed(seed)
        fields = {"vocab_size": vocab_size, **model_args["transformer"], **changed}
        self.model = Transformer(TransformerConfig.from_dict(fields))
        self.dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
        lr = default_learning_rate("muon_adamw", self.model.config.hidden_size)
        self.optimizer = MuonAdamW(parameter_groups(self.model, "muon_adamw", lr, 0.0))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.multiplier = lr_multiplier("wsd", RESOLUTION, warmup=0.02, decay=0.6, final=0.0)
        self.initial = copy.deepcopy(self.model.state_dict())
        parallelize(self.model, compile=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.settings = {
            "precision": str(self.dtype),
            "preset": PRESET.stem,
            "fields": changed,
            "learning_rate": lr,
        }

    def step(self, inputs: Tensor, targets: Tensor, iteration: int, progress: float) -> float:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.multiplier(int(progress * RESOLUTION))
        with self.autocast():
            loss = self.model.loss(inputs, targets) / targets.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16)

    def reset(self) -> None:
        self.model.load_state_dict(self.initial)
        self.optimizer.state.clear()

    def logits(self, tokens: Tensor) -> Tensor:
        with self.autocast(), torch.compiler.set_stance("force_eager"):
            return self.model(tokens)


def main() -> None:
    data = yaml.safe_load(PRESET.read_text())["data"]["init_args"]
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.set_defaults(tokens_per_step=data["global_batch_tokens"], seq_len=data["seq_len"])
    parser.add_argument(
        "--fields", type=json.loads, default={}, help="JSON: fields to change in the transformer"
    )
    args = parser.parse_args()
    prepared = harness.load(args.prepared)
    harness.run(Ours(len(prepared.token_bytes), args.seed, args.fields), prepared, args)


if __name__ == "__main__":
    main()
