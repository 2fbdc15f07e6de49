"""Ragged preference rows, and runs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lit_llm import CSVLogger, DPOModule, PreferenceDataModule, RewardModule

WORDS = ("yes", "no", "maybe", "red", "green", "blue", "long", "short", "the", "a", "good", "bad")
SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 192}


def write_pairs(file: Path, count: int = 40, **more: Any) -> Path:
    """Pairs of answers of different lengths, the chosen one with a margin."""
    draw = random.Random(0)

    def say(longest: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))

    with file.open("w") as out:
        for i in range(count):
            row = {"prompt": f"{say(10)} {i}?", "chosen": say(8), "rejected": f"{say(12)}.",
                   "margin": draw.random(), **more}  # fmt: skip
            out.write(json.dumps(row) + "\n")
    return file


def data(base: Path, rows: Path, cache: Path, **settings: Any) -> PreferenceDataModule:
    defaults = {"seq_len": 192, "micro_batch_size": 2, "global_batch_tokens": 8 * 192,
                "epochs": 4.0, "min_steps": 0, "validation_fraction": 0.2}  # fmt: skip
    return PreferenceDataModule(
        str(rows), tokenizer=str(base), cache_dir=str(cache), **{**defaults, **settings}
    )


def module(base: Path, kind: str, **settings: Any) -> DPOModule | RewardModule:
    """A module for the loss ``kind``, or for a reward model."""
    settings = {"compile": False, "patience": None, **settings}
    if kind == "reward":
        return RewardModule(str(base), margin=True, **settings)
    return DPOModule(str(base), loss=kind, **settings)


def trainer(folder: Path, devices: int = 1, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


class Gradients(L.Callback):
    """The gradient of every step, before clipping."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        found = module.named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in found if p.grad is not None})
