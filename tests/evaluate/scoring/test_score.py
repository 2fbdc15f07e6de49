"""Scores in company against the plain definition: each request alone, from the model's logits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_memory import LiveBytes

from lit_llm.evaluate.scoring.budget import batch_tokens
from lit_llm.evaluate.scoring.score import score
from lit_llm.evaluate.scoring.trees import Request, plan
from lit_llm.models.accounting.forward_memory import forward_bytes_per_token, forward_tokens
from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.transformer import Transformer

VOCAB = 7
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 48, "max_seq_len": 512,
}  # fmt: skip
# What a mask, a position or a cache can depend on.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"sliding_window": 5, "sliding_layers": [1]},
    "soft caps": {"attention_softcap": 5.0, "logit_softcap": 8.0},
    "learned positions": {"learned_positions": True, "nope_layers": [1]},
    "value embeddings": {"value_embeddings": [1], "value_gate_channels": 4},
    "smear": {"embedding_norm": True, "smear_channels": 6, "embedding_mix": True},
    "experts": {"num_experts": 4, "experts_per_token": 2, "router_aux_loss": 0.0},
}


@functools.cache
def model_of(family: str) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE, **FAMILIES[family])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def alone(model: Transformer, request: Request) -> tuple[float, bool]:
    ids = torch.tensor(request.ids)
    logits = model(ids[None, :-1])[0, -request.scored :].double()
    labels = ids[-request.scored :]
    values = logits.log_softmax(-1).gather(1, labels[:, None])
    return float(values.sum()), bool((logits.argmax(-1) == labels).all())


def some_requests(seed: int, count: int) -> list[Request]:
    """Questions with choices behind common examples, duplicates and short texts among them."""
    draw = np.random.default_rng(seed)

    def text(least: int, most: int) -> list[int]:
        return draw.integers(0, VOCAB, draw.integers(least, most)).tolist()

    examples = [text(0, 4), text(64, 150), text(64, 150)]
    found = []
    while len(found) < count:
        context = examples[draw.integers(3)] + text(0, 40)
        for _ in range(draw.integers(1, 5)):
            ids = context + text(1, 7)
            ids = ids if len(ids) > 1 else [0, *ids]
            found.append(Request(ids, int(draw.integers(1, min(len(ids), 8)))))
    return found[: count - 1] + found[:1]


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 10**6), capacity=st.sampled_from([16, 70, 200, 4000]))
@settings(max_examples=8, deadline=None)
def test_a_score_is_that_of_the_request_alone(family: str, seed: int, capacity: int) -> None:
    model, requests = model_of(family), some_requests(seed, 15)
    for found, request in zip(score(model, requests, capacity), requests, strict=True):
        logprob, greedy = alone(model, request)
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.greedy == greedy


def test_a_prefix_in_a_cache_is_used() -> None:
    """The families above that can have one do, or the test above would say nothing of it."""
    requests = some_requests(3, 40)
    assert plan(requests, 70).prefixes
    assert score(model_of("smear"), requests, 70)  # without one


def test_of_equal_logits_the_first_is_greedy() -> None:
    """As ``argmax`` has it, which lm-eval's ``hf`` compares with."""
    model = Transformer(TransformerConfig(**SHAPE)).eval()
    torch.nn.init.zeros_(model.head.weight)
    found = score(model, [Request([1, label], 1) for label in range(3)], 10)
    assert [greedy for _, greedy in found] == [True, False, False]


def test_one_row_of_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, requests = model_of("llama"), some_requests(1, 30)
    whole = score(model, requests, 100)
    monkeypatch.setattr("lit_llm.evaluate.scoring.forward.chunk_bytes", lambda device: 1)
    for one, other in zip(score(model, requests, 100), whole, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 128, "intermediate_size": 344},
        {"hidden_size": 128, "intermediate_size": 1024},
        {"hidden_size": 256, "num_heads": 16, "num_kv_heads": 4, "intermediate_size": 256},
        {"hidden_size": 128, "intermediate_size": 512, "mlp": "gelu"},
    ],
)
def test_the_memory_formula_covers_a_forward_pass(fields: dict[str, Any]) -> None:
    config = TransformerConfig(**{**SHAPE, **fields, "max_seq_len": 4096})
    model, tokens = Transformer(config).eval(), 4096
    ids = torch.zeros(1, tokens, dtype=torch.long)
    with LiveBytes() as counted, torch.no_grad():
        model.hidden_states(ids, forest=Forest.of_rows(ids))
    predicted = forward_bytes_per_token(config, 4) * tokens
    attention = 2 * 128 * tokens * config.num_heads * 4
    assert 0.5 * predicted < counted.peak < predicted + attention


def test_the_budget_follows_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")

    def tokens(free: int) -> int:
        monkeypatch.setattr("lit_llm.evaluate.scoring.budget.free_bytes", lambda device: free)
        return batch_tokens(model)

    assert tokens(10**12) == 2048 and tokens(0) == 64
    assert 64 < tokens(162_000_000) < 2048
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert 64 < tokens(324_000_000) < 2048


def test_a_budget_without_known_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lit_llm.models.engine.budget.MEMINFO", tmp_path / "none")
    assert batch_tokens(model_of("llama")) == 1024


def test_a_mask_on_a_gpu_grows_with_the_square() -> None:
    config, cuda = model_of("llama").config, torch.device("cuda")
    small, large = (forward_tokens(config, cuda, 2, free) for free in (10**9, 10**10))
    assert 3 * small < large < 10 * small
