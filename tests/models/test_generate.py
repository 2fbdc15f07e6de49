"""Sampling: against transformers' generate, across batches, and by its definitions."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.generate import generate, sample
from lit_llm.models.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_greedy_equals_transformers(model: Transformer, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.randint(0, 61, (1, 7))
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(model, prompt.tolist(), 20, temperature=0)[0] == expected[0, 7:].tolist()


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=2, max_size=4))
@settings(max_examples=15, deadline=None)
def test_answers_do_not_depend_on_company(model: Transformer, prompts: list[list[int]]) -> None:
    together = generate(model, prompts, 6, temperature=0)
    assert together == [generate(model, [prompt], 6, temperature=0)[0] for prompt in prompts]


def test_seed_and_stop(model: Transformer) -> None:
    prompt = [[1, 2, 3]]
    first = generate(model, prompt, 12, seed=3)
    assert first == generate(model, prompt, 12, seed=3)
    assert first != generate(model, prompt, 12, seed=4)
    stop = first[0][5]
    assert generate(model, prompt, 12, seed=3, stop_ids=[stop])[0] == first[0][: first[0].index(stop)]


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=9), st.integers(1, 4), st.floats(0.05, 1.0))
@settings(max_examples=100, deadline=None)
def test_top_k_and_top_p_keep_what_they_say(logits: list[float], k: int, p: float) -> None:
    row = torch.tensor([logits])
    ranked = row[0].sort(descending=True).values
    draws = {int(sample(row, top_k=k, generator=torch.Generator().manual_seed(i))) for i in range(30)}
    assert all(row[0, d] >= ranked[k - 1] for d in draws)
    probabilities = row[0].softmax(-1)
    draws = {int(sample(row, top_p=p, generator=torch.Generator().manual_seed(i))) for i in range(30)}
    for d in draws:  # what is strictly more likely than a kept token does not reach p without it
        assert probabilities[probabilities > probabilities[d]].sum() < p + 1e-5
    assert int(sample(row, temperature=0)) == int(row.argmax())


def test_temperature_scales_the_distribution() -> None:
    row = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
    share = sample(row, temperature=0.5, generator=torch.Generator().manual_seed(0)).float().mean()
    assert share.item() == pytest.approx(torch.tensor([0.0, 2.0]).softmax(0)[1].item(), abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 3), "at least one token"),
        (([[1], []], 3), "at least one token"),
        (([[1]], 0), "max_new_tokens"),
        (([[1]], 5000), "exceed max_seq_len"),
        (([[99]], 3), "beyond vocab_size"),
    ],
)
def test_bad_requests_are_named(model: Transformer, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, *arguments)
    with pytest.raises(UserError, match="top_p"):
        generate(model, [[1]], 1, top_p=0.0)
