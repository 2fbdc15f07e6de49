"""Sampling: the distribution drawn from against transformers' logits processors, the draws against
the distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_llm.errors import UserError
from lit_llm.models.generation.sampling import (
    GREEDY,
    Sampler,
    Sampling,
    draw,
    penalize,
    probabilities,
)

VOCAB = 12


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    st.floats(0.5, 2.0),
    st.floats(0.1, 3.0),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(0.05, 1.0),
    st.none() | st.floats(0.0, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_distribution_equals_transformers(
    seed: int,
    prompt: list[int],
    penalty: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> None:
    logits = 3 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor([prompt, prompt[::-1]])
    theirs = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)]
    )
    if top_k is not None:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        theirs.append(MinPLogitsWarper(min_p))
    seen = torch.zeros(2, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
    how = Sampling(penalty, temperature, top_k, top_p, min_p)
    ours = probabilities(penalize(logits, seen, penalty), how)
    torch.testing.assert_close(ours, theirs(ids, logits).softmax(-1), atol=1e-6, rtol=1e-5)


def test_draws_follow_the_distribution() -> None:
    row, how = torch.tensor([[0.0, 1.0, -1.0, 0.5]]), Sampling(temperature=0.5, top_k=3, min_p=0.1)
    draws = draw(row.expand(20_000, 4), how, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        draws.bincount(minlength=4) / 20_000, probabilities(row, how)[0], atol=0.01, rtol=0
    )
    assert draw(row, GREEDY).tolist() == [1]


def test_a_sampler_counts_what_it_draws() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.5], [3.0, 2.9, -1.0]])
    sampler = Sampler(
        Sampling(repetition_penalty=2.0, temperature=0), 0, [[0], [2, 2]], 3, logits.device
    )
    assert [sampler(logits).tolist() for _ in range(3)] == [[1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name}={value:g}: must be"):
        Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_temperature_near_zero_takes_the_likeliest(temperature: float) -> None:
    logits_BV = torch.tensor([[80.0, 90.0, -5.0]])
    assert draw(logits_BV, Sampling(temperature=temperature)).tolist() == [1]
