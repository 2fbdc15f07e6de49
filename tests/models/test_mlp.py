"""Mixtures of experts against the sum written out, and in training."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.pretrain import PretrainDataModule
from lit_llm.models.config import TransformerConfig
from lit_llm.models.mlp import MixtureOfExperts
from lit_llm.models.transformer import Transformer
from lit_llm.training.optimizers import MuonAdamW, parameter_groups
from lit_llm.training.pretrain import PretrainModule

SHAPE = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 2,
}


def mixture(**fields) -> MixtureOfExperts:
    module = MixtureOfExperts(TransformerConfig(**SHAPE, **fields))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 9),
    data=st.data(),
    normalize=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_weighted_sum_of_the_chosen(
    tokens: int, experts: int, data, normalize: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    top_k = data.draw(st.integers(1, experts))
    module = mixture(
        num_experts=experts, experts_per_token=top_k, normalize_expert_weights=normalize
    )
    x = torch.randn(1, tokens, 16)
    expected = torch.zeros(tokens, 16)
    for n, token in enumerate(x[0]):
        probabilities = (module.router.weight @ token).softmax(-1)
        chosen = probabilities.topk(top_k)
        weights = chosen.values / chosen.values.sum() if normalize else chosen.values
        for weight, e in zip(weights, chosen.indices, strict=True):
            w = module.experts
            hidden = F.silu(w.gate_proj[e] @ token) * (w.up_proj[e] @ token)
            expected[n] += weight * (w.down_proj[e] @ hidden)
    torch.testing.assert_close(module(x)[0], expected, atol=1e-5, rtol=1e-4)


def test_only_visited_experts_get_gradients() -> None:
    torch.manual_seed(0)
    module = mixture(num_experts=8, experts_per_token=1)
    x = torch.randn(1, 3, 16)
    visited = set(module.router(x).argmax(-1).flatten().tolist())
    module(x).square().sum().backward()
    assert module.experts.up_proj.grad is not None
    moved = {e for e in range(8) if module.experts.up_proj.grad[e].abs().sum() > 0}
    assert moved == visited


def test_the_grouped_kernel_is_the_loop() -> None:
    torch.manual_seed(0)
    experts = mixture(num_experts=4).experts.bfloat16()
    counts = torch.tensor([5, 0, 11, 4])
    x = torch.randn(20, 16, dtype=torch.bfloat16)
    results = []
    for function in (experts, experts.grouped):
        experts.zero_grad()
        y = function(x, counts)
        (y * torch.arange(16)).float().square().sum().backward()
        results.append((y, *(p.grad for p in experts.parameters())))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)


def test_the_z_loss_is_the_squared_log_of_the_routers_sum() -> None:
    config = TransformerConfig(**SHAPE, num_experts=4, router_z_loss=0.5)
    model = Transformer(config).train()
    ids = torch.randint(0, 41, (2, 5))
    seen: list[torch.Tensor] = []
    for block in model.layers:
        block.mlp.router.register_forward_hook(lambda module, args, out: seen.append(out))
    model(ids)
    expected = torch.stack([0.5 * logits.logsumexp(-1).square().mean() for logits in seen]).mean()
    torch.testing.assert_close(model.take_router_loss(), expected)


@pytest.mark.parametrize("optimizer", ["muon_adamw", "adamw"])
def test_experts_are_matrices_to_the_optimizer(optimizer: str) -> None:
    model = Transformer(TransformerConfig(**SHAPE, num_experts=4, qk_norm="per_head"))
    groups = {
        group["name"]: group["params"] for group in parameter_groups(model, optimizer, 1e-2, 0.0)
    }
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    assert len(experts) == 6
    assert all(any(p is q for q in groups["matrices"]) for p in experts)
    gains = [p for name, p in model.named_parameters() if "q_norm" in name]
    assert gains[0].ndim == 2
    assert all(any(p is q for q in groups["vectors"]) for p in gains)


def test_a_stack_takes_the_step_of_its_members() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 12))
    members = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    optimizers = [
        MuonAdamW([{"params": params, "muon": True, "lr": 0.02}]) for params in ([stack], members)
    ]
    for _ in range(3):
        stack.grad = torch.randn(3, 8, 12)
        for member, part in zip(members, stack.grad, strict=True):
            member.grad = part
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(
        stack.detach(), torch.stack([m.detach() for m in members]), atol=1e-6, rtol=1e-5
    )


def test_a_model_of_experts_trains(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(
            f"{i}: " + "the cat sat on the mat and the dog on the log\n" * 20
        )
    data = PretrainDataModule(
        sources=str(tmp_path / "*.txt"), vocab_size=280, tokens=16000, seq_len=32,
        micro_batch_size=4, cache_dir=str(tmp_path / "cache")
    )  # fmt: skip
    module = PretrainModule({"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_experts": 4,
                             "router_aux_loss": 0.01,
                             "router_z_loss": 0.001}, compile=False)  # fmt: skip
    losses: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *args) -> None:
            losses.append(float(outputs["loss"]))

    L.seed_everything(0)
    L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[Watch()],
              limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
              accelerator="cpu").fit(module, data)  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
