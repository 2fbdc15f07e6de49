"""Bits per byte and loss, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from lit_llm.training.metrics import LanguageModelMetrics


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
