"""Vectorised sampling: against the row-by-row definition, frequencies, and the random numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.engine import sampling
from lit_llm.models.engine.random_numbers import uniform
from lit_llm.models.engine.requests import SamplingSettings
from lit_llm.models.engine.sampling import SamplingRow, choose
from lit_llm.models.generation.sampling import Sampling, probabilities

V = 50
SETTINGS = st.builds(
    SamplingSettings,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([{}, {3: 5.0, 4: -100.0}]),
    temperature=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 7, 100]),
    top_p=st.sampled_from([None, 1.0, 0.5, 0.9]),
    min_p=st.sampled_from([None, 0.0, 0.1]),
)


def expected_token(logits: torch.Tensor, row: SamplingRow) -> int:
    """The definition, for one row with plain loops over the tokens that a setting names."""
    logits, s = logits.clone(), row.settings
    for token in row.prompt | set(row.answer):
        logits[token] *= s.repetition_penalty if logits[token] < 0 else 1 / s.repetition_penalty
    for token, count in row.answer.items():
        logits[token] -= s.presence_penalty + s.frequency_penalty * count
    for token, bias in s.logit_bias.items():
        logits[token] += bias
    if s.temperature == 0:
        return int(logits.argmax())
    theirs = Sampling(1.0, s.temperature, s.top_k, s.top_p, s.min_p)
    total = probabilities(logits[None], theirs)[0].double().cumsum(0)
    return int((total > row.uniform * total[-1]).int().argmax())


@given(
    st.lists(st.tuples(SETTINGS, st.floats(0, 0.999)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_rows_are_drawn_by_their_definition(
    asked: list[tuple[SamplingSettings, float]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(asked), V, generator=generator)
    rows = [
        SamplingRow(how, number, frozenset({1, 2, 3}), Counter([3, 3, 5])) for how, number in asked
    ]
    chosen = [token.id if token else None for token in choose(logits.clone(), rows)]
    for token, row_logits, row in zip(chosen, logits, rows, strict=True):
        if token != expected_token(row_logits, row):
            # The two sums differ in rounding, so only a number at a border may differ.
            nudged = [
                expected_token(
                    row_logits, SamplingRow(row.settings, row.uniform + e, row.prompt, row.answer)
                )
                for e in (-1e-5, 1e-5)
            ]
            assert token in nudged


def test_few_and_many_candidates_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat rows need all tokens, steep ones a few; either way the whole row decides."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 5.0]).repeat(50)[:, None]
    logits = scale * torch.randn(100, 700, generator=generator)
    for how in (
        SamplingSettings(top_p=0.9),
        SamplingSettings(top_k=3),
        SamplingSettings(top_k=300, top_p=0.5),
        SamplingSettings(min_p=0.2),
    ):
        rows = [SamplingRow(how, uniform(1, 0, i)) for i in range(100)]
        whole = [token.id if token else None for token in choose(logits.clone(), rows)]
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "CANDIDATES", 16)
            assert [token.id if token else None for token in choose(logits.clone(), rows)] == whole


def test_a_row_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(30, 700, generator=generator)
    how = [SamplingSettings(), SamplingSettings(top_p=0.8), SamplingSettings(temperature=0.0)]
    rows = [SamplingRow(how[i % 3], uniform(1, 0, i), top_logprobs=i % 4) for i in range(30)]
    together = choose(logits.clone(), rows)
    for i, token in enumerate(together):
        assert choose(logits[i : i + 1].clone(), rows[i : i + 1]) == [token]


def test_frequencies() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(4000, 1)
    rows = [SamplingRow(SamplingSettings(), uniform(7, 0, i)) for i in range(4000)]
    counts = Counter(token.id for token in choose(logits.clone(), rows) if token)
    shares = torch.tensor([counts[i] / 4000 for i in range(4)])
    assert (shares - logits[0].softmax(0)).abs().max() < 0.03


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(1))
    how = SamplingSettings(temperature=0.0, logit_bias={9: 100.0})
    rows = [SamplingRow(how, 0.5, top_logprobs=3), SamplingRow(how, 0.5, top_logprobs=0)]
    first, second = choose(logits.clone(), rows)
    assert first is not None and second is not None
    expected = logits.log_softmax(-1)
    assert first.id == second.id == 9
    assert first.logprob == pytest.approx(float(expected[0, 9]))
    assert [token for token, _ in first.top_logprobs] == expected[0].topk(3).indices.tolist()
    assert second.logprob == pytest.approx(float(expected[1, 9]))
    assert second.top_logprobs == []


def test_a_mask_leaves_only_its_tokens() -> None:
    logits = torch.zeros(3, V)
    logits[:, 0] = 50.0
    mask = torch.zeros(2, dtype=torch.int32)
    mask[0], mask[1] = -(2**31), 1  # tokens 31 and 32
    for temperature in (0.0, 1.0):
        rows = [
            SamplingRow(SamplingSettings(temperature=temperature), u, mask=mask) for u in (0.1, 0.9)
        ]
        rows.append(SamplingRow(SamplingSettings(temperature=temperature), 0.3))
        got = [token.id if token else None for token in choose(logits.clone(), rows)]
        assert got == ([31, 31, 0] if temperature == 0 else [31, 32, 0])


@given(st.integers(-(2**64), 2**65), st.integers(0, 8), st.integers(0, 10**6))
def test_random_numbers_depend_on_all_three(seed: int, choice: int, position: int) -> None:
    number = uniform(seed, choice, position)
    assert 0 <= number < 1
    assert number == uniform(seed, choice, position)
    others = {uniform(seed + 1, choice, position), uniform(seed, choice + 1, position),
              uniform(seed, choice, position + 1)}  # fmt: skip
    assert len(others) == 3 and number not in others


def test_random_numbers_are_uniform() -> None:
    numbers = torch.tensor([uniform(1, 0, i) for i in range(20_000)], dtype=torch.float64)
    shares = torch.histc(numbers, 20, 0, 1) / len(numbers)
    assert (shares - 0.05).abs().max() < 0.01


def test_a_row_without_a_token_spoils_no_other() -> None:
    logits = torch.zeros(3, V)
    logits[1, 4] = torch.nan
    nothing = torch.zeros(2, dtype=torch.int32)
    for how in (SamplingSettings(temperature=0.0), SamplingSettings(top_p=0.5)):
        rows = [SamplingRow(how, 0.0, mask=nothing), SamplingRow(how, 0.0), SamplingRow(how, 0.0)]
        assert choose(logits.clone(), rows)[:2] == [None, None]
        assert choose(logits.clone(), rows)[2] is not None
