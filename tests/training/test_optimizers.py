"""Muon against its definition, AdamW against torch's, and one optimizer made of both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.config import TransformerConfig
from lit_llm.models.transformer import Transformer
from lit_llm.training import optimizers
from lit_llm.training.optimizers import (
    MuonAdamW,
    default_learning_rate,
    orthogonalize,
    parameter_groups,
)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_orthogonalize_brings_singular_values_near_one(rows: int, cols: int, seed: int) -> None:
    g = torch.randn(3, rows, cols, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    got = orthogonalize(g, torch.float32)
    values = torch.linalg.svdvals(got)
    kept = s > 0.02 * s.amax(-1, keepdim=True)  # five iterations do not lift what is nearly zero
    assert values.max() < 1.3
    # The singular vectors are kept: projected on them, each direction's value is near 1.
    projected = (u.mT @ got @ vh.mT).diagonal(dim1=-2, dim2=-1)
    assert projected[kept].min() > 0.5


def test_adamw_groups_step_as_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = MuonAdamW([{"params": ours, "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8}])
    other = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_muon_step_has_the_size_of_its_rate_whatever_the_gradient() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(64, 32)
    steps = []
    for scale in (2.0**-13, 1.0, 2.0**13):  # powers of two: rounding is the same
        p = torch.nn.Parameter(torch.zeros(64, 32))
        p.grad = gradient * scale
        MuonAdamW([{"params": [p], "muon": True, "lr": 0.1}]).step()
        steps.append(p.detach())
    # The norm's epsilon is not scaled
    torch.testing.assert_close(steps[0], steps[1], atol=1e-3, rtol=0.05)
    torch.testing.assert_close(steps[2], steps[1], atol=1e-3, rtol=0.05)
    # 32 unit directions, times sqrt(rows / cols)
    assert steps[1].norm().item() == pytest.approx(0.1 * 2**0.5 * 32**0.5, rel=0.1)


def test_matrices_stepped_in_several_stacks_step_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for most in (2**28, 2 * 6 * 4):  # all five at once; two at a time
        monkeypatch.setattr(optimizers, "_STACKED", most)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(5)]
        optimizer = MuonAdamW([{"params": params, "muon": True, "lr": 1.0}])
        for _ in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        outcomes.append(params)
        assert [len(stack) for stack in optimizers._stacks(params)] == (
            [5] if most == 2**28 else [2, 2, 1]
        )
    for one, other in zip(*outcomes, strict=True):
        # Bfloat16 products, where they are fast
        torch.testing.assert_close(one, other, atol=0.05, rtol=1e-2)


def test_momentum_is_nesterov() -> None:
    p = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = MuonAdamW([{"params": [p], "muon": True, "momentum": 0.9}])
    first, second = torch.randn(4, 4), torch.randn(4, 4)
    for gradient in (first, second):
        p.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(p.grad, gradient)  # the gradient is left as it was, for whoever logs it
    torch.testing.assert_close(optimizer.state[p]["momentum"], 0.9 * 0.1 * first + 0.1 * second)


MIXED = {
    "embedding_norm": True, "norm_weight": False, "value_embeddings": [1],
    "value_gate_channels": 12, "smear_channels": 24, "embedding_mix": True, "backout_layer": 0,
    "bigram_rows": 64, "exclusive_attention": True,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["muon_adamw", "adamw"])
@pytest.mark.parametrize("fields", [{}, MIXED], ids=["plain", "mixed"])
def test_groups_hold_each_parameter_once_and_state_survives(
    optimizer: str, fields: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    model = Transformer(TransformerConfig(**shape, **fields))
    groups = parameter_groups(model, optimizer, 0.01, 0.1)  # type: ignore[arg-type]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert groups[0]["lr"] == 0.01 and groups[0]["name"] == "matrices"

    def make(module: torch.nn.Module) -> torch.optim.Optimizer:
        made = parameter_groups(module, optimizer, 0.01, 0.1)  # type: ignore[arg-type]
        return MuonAdamW(made) if optimizer == "muon_adamw" else torch.optim.AdamW(made)

    def step(module: torch.nn.Module, opt: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(seed))
        module(x).float().logsumexp(-1).sum().backward()
        opt.step()
        opt.zero_grad()

    opt = make(model)
    for seed in range(3):
        step(model, opt, seed)
    other = copy.deepcopy(model)
    resumed = make(other)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for seed in range(3, 6):
        step(model, opt, seed)
        step(other, resumed, seed)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_lookups_are_embeddings_and_mixing_factors_are_vectors() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(hidden_size=192, num_layers=2, num_heads=6, **MIXED))
    groups = {group["name"]: group for group in parameter_groups(model, "muon_adamw", 0.02, 0.0)}
    rates = {"matrices": 0.02, "lookups": 0.6, "head": 0.008, "vectors": 0.01}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(rates)
    tables = [(64, 192), (4096, 192), (4096, 192)]
    assert sorted(p.shape for p in groups["lookups"]["params"]) == tables
    # Smear's gate and scale, each layer's two factors, the scales of bigrams and back-out.
    assert sorted(p.numel() for p in groups["vectors"]["params"]) == [1] * 7 + [24]
    assert any(p.shape == (6, 12) for p in groups["matrices"]["params"])  # the value gate


def test_tied_head_is_one_parameter_of_the_embedding_group() -> None:
    model = Transformer(
        TransformerConfig(
            vocab_size=50, hidden_size=32, num_layers=1, num_heads=2, tie_embeddings=True
        )
    )
    groups = parameter_groups(model, "muon_adamw", 0.01, 0.0)
    assert [g["name"] for g in groups] == ["matrices", "embedding", "vectors"]


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(3))], "muon": True}])


def test_derived_rates_move_the_right_way() -> None:
    assert default_learning_rate("adamw", 512) == default_learning_rate("adamw", 256) / 2
    assert default_learning_rate("muon_adamw", 512) == default_learning_rate("muon_adamw", 256)


def test_a_head_of_any_name_is_not_muons() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2
    ))  # fmt: skip
    groups = {
        group["name"]: group["params"] for group in parameter_groups(model, "muon_adamw", 0.01, 0.0)
    }
    assert [id(p) for p in groups["head"]] == [id(model.lm_head.weight)]
