"""An answer has the same tokens and log-probabilities, bit for bit, alone and in any company."""

from __future__ import annotations

import random

import pytest
import torch

from lit_llm.models.engine import answer_view
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import Finished, GenerationRequest, SamplingSettings
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from tests.engine.models import KINDS, alone, answer, drive, requests, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_in_any_company(kind: str) -> None:
    compare(kind, torch.bfloat16, 7, [(256, 1100, 1024)])


def test_rows_of_even_widths_are_padded_to_two() -> None:
    assert Engine(tiny(**KINDS["even widths"]), 256).row_step == 2
    assert Engine(tiny(**KINDS["grouped heads"]), 256).row_step == 8
    assert Engine(tiny(**{**KINDS["even widths"], **KINDS["experts"]}), 256).row_step == 8


@pytest.mark.parametrize("kind", ["grouped heads", "soft cap"])
def test_same_bits_with_either_order_of_the_products(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one is used depends on the processor."""
    monkeypatch.setattr(answer_view, "KEYS_FIRST", not answer_view.KEYS_FIRST)
    compare(kind, torch.bfloat16, 5, [(512, 1100, 1024)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_of_many(kind: str, dtype: torch.dtype) -> None:
    compare(
        kind, dtype, 40, [(128, 1300, 0), (256, 2000, 1024), (512, 3000, 9999), (9999, 99999, 9999)]
    )


def compare(
    kind: str, dtype: torch.dtype, count: int, settings: list[tuple[int, int, int]]
) -> None:
    """Compare answers alone with those in company, with the prefix cache cold and warm.

    ``settings`` are step, slot and prefix tokens of each engine.
    """
    draw = random.Random(kind)
    model, asked = tiny(dtype, **KINDS[kind]), requests(draw, count)
    expected = alone(model, asked)
    cached = 0
    for step_tokens, kv_tokens, prefix_tokens in settings:
        engine = Engine(model, kv_tokens, prefix_tokens, step_tokens)
        arrivals = sorted(draw.randrange(4 * count) for _ in asked)
        for when in (arrivals, None):
            got = drive(engine, asked, when)
            assert [answer(events) for events in got] == expected
            cached += sum(events[-1].cached_tokens for events in got)  # type: ignore[union-attr]
        assert not engine.table.owners()
    assert cached


@pytest.mark.parametrize("kind", ["grouped heads", "experts"])
def test_preemption_repeats_the_same_bits(kind: str) -> None:
    draw = random.Random(2)
    model = tiny(torch.bfloat16, **KINDS[kind])
    asked = [
        GenerationRequest([draw.randrange(97) for _ in range(200)], 90, seed=seed, top_logprobs=2)
        for seed in range(5)
    ]
    expected = alone(model, asked)
    engine = Engine(model, 1300)
    assert [answer(events) for events in drive(engine, asked)] == expected
    assert engine.scheduler.preemptions
    assert not engine.table.owners()


def test_cancelling_changes_no_other_answer() -> None:
    draw = random.Random(5)
    model, asked = tiny(torch.bfloat16), requests(draw, 12)
    expected = alone(model, asked)
    engine = Engine(model, 2000, 1024, 128)
    cancelled = {number: draw.randrange(1, 30) for number in range(0, 12, 3)}
    got = drive(engine, asked, cancelled=cancelled)
    reasons = [events[-1].reason for events in got]  # type: ignore[union-attr]
    assert "cancelled" in reasons
    for events, reason, whole in zip(got, reasons, expected, strict=True):
        if reason == "cancelled":
            assert tuple(events[:-1]) == whole[: len(events) - 1]
        else:
            assert answer(events) == whole
    assert not engine.table.owners()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_generate(kind: str) -> None:
    draw = random.Random(kind)
    model = tiny(torch.float32, **KINDS[kind])
    prompts = [[draw.randrange(97) for _ in range(n)] for n in (1, 40, 128, 200)]
    expected = [generate(model, [prompt], 70, GREEDY)[0] for prompt in prompts]
    greedy = SamplingSettings(temperature=0.0)
    asked = [GenerationRequest(prompt, 70, greedy) for prompt in prompts]
    got = drive(Engine(model, 10**4), asked)
    assert [[event.id for event in events[:-1]] for events in got] == expected  # type: ignore[union-attr]
    for events in got:
        assert events[-1] == Finished("length", len(asked[got.index(events)].prompt), 0, 70)
