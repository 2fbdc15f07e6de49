"""Layers of one input, computed together, are the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_llm.models.kernels import fused
from lit_llm.models.kernels.eager import use_onednn
from lit_llm.models.kernels.fused import project
from lit_llm.models.lora import LoRAConfig, apply_lora
from lit_llm.models.transformer import Transformer, TransformerConfig


class Layers(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, size, bias=bias) for size in (48, 16, 16))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return project(x, *self.layers)


def outcome(layers: Layers, compiled: bool = False) -> list[torch.Tensor]:
    """Outputs and all gradients of one pass."""
    torch.manual_seed(1)
    x = torch.randn(2, 5, 32, requires_grad=True)
    layers.zero_grad()
    outputs = torch.compile(layers, fullgraph=True)(x) if compiled else layers(x)
    sum((i + 1) * y.square().sum() for i, y in enumerate(outputs)).backward()
    return [*outputs, x.grad, *(p.grad.clone() for p in layers.parameters())]


@pytest.mark.parametrize("bias", [True, False])
def test_together_they_are_what_they_are_alone(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    torch.manual_seed(0)
    layers = Layers(bias)
    expected = outcome(layers)
    monkeypatch.setattr(fused, "SIDE_BY_SIDE", {"cpu"})
    products = []
    monkeypatch.setattr(
        torch, "cat", lambda tensors, cat=torch.cat: products.append(len(tensors)) or cat(tensors)
    )
    together = outcome(layers, compiled=True)
    assert products == [3, 3] if bias else [3]
    use_onednn(layers)
    for results in (together, outcome(layers)):
        for got, alone in zip(results, expected, strict=True):
            torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-5)


def test_adapted_layers_are_called_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SIDE_BY_SIDE", {"cpu"})
    model = Transformer(TransformerConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=2))
    apply_lora(model, LoRAConfig(rank=2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    ids = torch.arange(8)[None]
    expected = model.hidden_states(ids)
    model.layers[0].compile(fullgraph=True)
    torch.testing.assert_close(model.hidden_states(ids), expected, atol=1e-5, rtol=1e-5)
