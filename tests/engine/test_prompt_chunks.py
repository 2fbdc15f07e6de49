"""Chunks of prompts are computed in one pass where that changes no bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.prompts import MOST_TOGETHER, PromptChunks, chunks_together
from lit_llm.models.engine.requests import Finished, GenerationRequest
from lit_llm.models.kernels.packed import PackedLinear
from tests.engine.models import KINDS, drive, tiny

PROMPT = [number % 89 for number in range(300)]


def computed(engine: Engine, prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Run requests of one token; return the first positions of each pass, and cached tokens."""
    passes: list[list[int]] = []
    compute = engine.prompts.compute

    def noted(chunks):  # type: ignore[no-untyped-def]
        passes.append([chunk.begin for chunk in chunks])
        return compute(chunks)

    engine.prompts.compute = noted  # type: ignore[method-assign]
    events = drive(engine, [GenerationRequest(prompt, 1) for prompt in prompts])
    ends = [found[-1] for found in events]
    assert all(isinstance(end, Finished) and end.reason == "length" for end in ends)
    return passes, [end.cached_tokens for end in ends]  # type: ignore[union-attr]


def test_chunks_of_one_prompt_and_of_several_are_one_pass() -> None:
    engine = Engine(tiny(torch.bfloat16), 4096, step_tokens=1024)
    assert engine.prompts.together == MOST_TOGETHER
    passes, cached = computed(engine, [PROMPT, PROMPT[:130]])
    assert passes == [[0, 128, 0, 128], [256]] and cached == [0, 0]


def test_equal_prompts_of_one_step_are_computed_once() -> None:
    """As the n choices of one request are."""
    engine = Engine(tiny(torch.bfloat16), 4096, prefix_tokens=1024, step_tokens=2048)
    passes, cached = computed(engine, [PROMPT, PROMPT, PROMPT])
    assert passes == [[0, 128, 256], [256, 256]] and cached == [0, 256, 256]


@pytest.mark.parametrize("kind", ["experts", "one token back"])
def test_rows_that_meet_are_computed_alone(kind: str) -> None:
    assert chunks_together(tiny(torch.bfloat16, **KINDS[kind])) == 1


def test_a_product_of_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(torch.bfloat16)
    Engine(model, 1024)  # packs the weights
    forward = PackedLinear.forward

    def other_kernel(layer: nn.Linear, x: Tensor) -> Tensor:
        y = forward(layer, x)  # type: ignore[arg-type]
        return y * 1.01 if len(x) > 300 and layer.out_features == 96 else y

    monkeypatch.setattr(PackedLinear, "forward", other_kernel)
    assert chunks_together(model) == 2


def test_an_error_in_a_pass_ends_the_requests_that_it_is_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute = PromptChunks.compute

    def failing(self, chunks):  # type: ignore[no-untyped-def]
        if any(chunk.sequence.number == 1 for chunk in chunks):
            raise RuntimeError("a product failed")
        return compute(self, chunks)

    monkeypatch.setattr(PromptChunks, "compute", failing)
    asked = [GenerationRequest(PROMPT, 1) for _ in range(3)]
    ends = [events[-1] for events in drive(Engine(tiny(), 4096, step_tokens=1024), asked)]
    assert [end.reason for end in ends] == ["length", "error", "length"]  # type: ignore[union-attr]
