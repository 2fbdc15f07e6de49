"""Bits per byte and loss, against their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_llm import PretrainModule
from lit_llm.training.metrics import LanguageModelMetrics
from lit_llm.training.step_loss import LossMean


def test_against_the_definition_in_any_batching() -> None:
    torch.manual_seed(0)
    nll, keep, sizes = torch.rand(6, 10), torch.rand(6, 10) > 0.2, torch.randint(0, 5, (6, 10))
    whole, first, second = LanguageModelMetrics(), LanguageModelMetrics(), LanguageModelMetrics()
    whole.update(nll, keep, sizes)
    first.update(nll[:1], keep[:1], sizes[:1])
    second.update(nll[1:], keep[1:], sizes[1:])
    first.add(second)
    text = keep & (sizes > 0)
    expected = {
        "loss": nll[keep].double().mean().item(),
        "bits_per_byte": nll[text].double().sum().item() / math.log(2) / sizes[keep].sum().item(),
    }
    for metric in (whole, first):
        got = metric.compute()
        assert {k: v.item() for k, v in got.items()} == pytest.approx(expected, rel=1e-12)


def test_without_bytes_there_is_only_a_loss() -> None:
    metric = LanguageModelMetrics()
    metric.update(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert metric.compute() == {"loss": torch.tensor(1.0, dtype=torch.float64)}


def test_a_steps_loss_is_float32_in_a_module_of_bfloat16() -> None:
    module = torch.nn.ModuleDict({"loss": LossMean(), "weights": torch.nn.Linear(2, 2)})
    module.to(torch.bfloat16)
    assert module["weights"].weight.dtype == torch.bfloat16
    for value in (1.003, 1.005):
        module["loss"].update(torch.tensor(value))
    assert module["loss"].compute().item() == pytest.approx(1.004, abs=1e-6)


def test_the_loss_of_a_run_in_bfloat16_is_not_rounded_to_it(tmp_path: Path) -> None:
    class Known(PretrainModule):
        def compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return 1003.0 + 0 * next(self.network.parameters()).float().sum()

    ids = torch.zeros(1, 8, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids, "step_tokens": torch.tensor(1000)}
    trainer = L.Trainer(
        accelerator="cpu", precision="bf16-true", max_steps=1, log_every_n_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Known({"hidden_size": 32, "num_layers": 1, "num_heads": 1}, optimizer="adamw")
    trainer.fit(module, DataLoader([batch], batch_size=None))
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(1.003, abs=1e-6)
