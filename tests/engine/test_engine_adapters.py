"""Adapters mixed in one step: bit-equal to each adapter alone, close to the merged model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import GenerationRequest, SamplingSettings
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.adapters import load_adapter, save_adapter
from lit_llm.models.lora import apply_lora, lora_layers, merge_lora
from lit_llm.models.lora_config import TARGETS, LoRAConfig
from tests.engine.models import answer, drive, tiny

GREEDY_ROW = SamplingSettings(temperature=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of different ranks and targets."""
    found = {}
    for name, rank, targets in (("one", 4, ("q_proj", "v_proj")), ("two", 8, TARGETS)):
        model = tiny()
        apply_lora(model, LoRAConfig(rank=rank, alpha=8, targets=targets))
        torch.manual_seed(rank)
        for layer in lora_layers(model):
            torch.nn.init.normal_(layer.lora_b, std=0.1)
        found[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, found[name])
    return found


def asked(count: int) -> list[GenerationRequest]:
    draw = random.Random(1)
    prompt = [draw.randrange(97) for _ in range(140)]  # its first chunk is shared
    return [
        GenerationRequest(
            prompt[: draw.choice([130, 140])], draw.randint(5, 40), seed=number, top_logprobs=2,
            adapter=(None, "one", "two")[number % 3],
        )
        for number in range(count)
    ]  # fmt: skip


def test_same_bits_in_any_company(folders: dict[str, Path]) -> None:
    model, requests = tiny(torch.bfloat16), asked(9)
    together = drive(Engine(model, 9000, 4000, adapters=folders), requests)
    for request, events in zip(requests, together, strict=True):
        engine = Engine(tiny(torch.bfloat16), 2000, adapters=folders)
        assert answer(events) == answer(drive(engine, [request])[0])


def test_each_adapter_answers_as_its_merged_model(folders: dict[str, Path]) -> None:
    prompts = [[1, 2, 3], list(range(50))]
    engine = Engine(tiny(), 9000, adapters=folders)
    answers = {}
    for name in (None, "one", "two"):
        merged = tiny()
        if name is not None:
            load_adapter(merged, folders[name])
            merge_lora(merged)
        answers[name] = generate(merged, prompts, 20, GREEDY)
    requests = [
        GenerationRequest(prompt, 20, GREEDY_ROW, adapter=name)
        for name in answers
        for prompt in prompts
    ]
    got = [[event.id for event in events[:-1]] for events in drive(engine, requests)]  # type: ignore[union-attr]
    assert got == [ids for found in answers.values() for ids in found]
    assert answers["one"] != answers["two"] != answers[None]


def test_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    engine = Engine(tiny(), 1000, adapters=folders)
    with pytest.raises(UserError, match="no adapter named 'three'; known are one, two"):
        engine.check(GenerationRequest([1], 3, adapter="three"))
    model = tiny()
    apply_lora(model, LoRAConfig(rank=2, targets=("q_proj",), dora=True))
    save_adapter(model, tmp_path / "dora")
    with pytest.raises(UserError, match="adapter d: DoRA cannot be served beside its base"):
        Engine(tiny(), 1000, adapters={"d": tmp_path / "dora"})
    model = tiny()
    apply_lora(model, LoRAConfig(rank=2, targets=("q_proj",), train_modules=("head",)))
    save_adapter(model, tmp_path / "head")
    with pytest.raises(UserError, match=r"adapter h: head.weight cannot be served"):
        Engine(tiny(), 1000, adapters={"h": tmp_path / "head"})
