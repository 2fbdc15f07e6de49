"""Tiny models of each kind of attention, and requests to run on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import Event, Finished, GenerationRequest, SamplingSettings
from lit_llm.models.transformer import Transformer

VOCAB = 97
# fmt: off
KINDS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "all heads": {"num_kv_heads": 4},
    "one key head": {"num_kv_heads": 1},
    "window": {"sliding_window": 40, "sliding_layers": [0], "local_rope_theta": 1000.0},
    "soft cap": {"attention_softcap": 20.0, "logit_softcap": 30.0, "norm_offset": True},
    "learned positions": {"learned_positions": True, "norm": "layernorm", "mlp": "gelu"},
    "no positions": {"nope_layers": [1], "attention_bias": True},
    "normalised heads": {"qk_norm": "before_rope", "head_dim": 24},
    "per head": {"qk_norm": "per_head", "residual": "parallel", "rotary_fraction": 0.5},
    "one token back": {"smear_channels": 12, "value_embeddings": [0, 1], "embedding_mix": True,
                       "value_gate_channels": 8, "backout_layer": 0, "embedding_norm": True,
                       "bigram_rows": 200, "exclusive_attention": True},
    "even widths": {"num_kv_heads": 4, "intermediate_size": 128},
    "experts": {"num_experts": 4, "experts_per_token": 2, "expert_size": 24},
}
# fmt: on


def tiny(dtype: torch.dtype = torch.float32, **fields: Any) -> Transformer:
    """A model with random weights that are large enough for varied answers."""
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
             "intermediate_size": 96, "max_seq_len": 700}  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=VOCAB, **{**shape, **fields}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()


def requests(draw: random.Random, count: int, longest: int = 60) -> list[GenerationRequest]:
    """Random requests, some of which share the beginning of their prompts."""
    prefix = [draw.randrange(VOCAB) for _ in range(256)]
    found = []
    for number in range(count):
        own = draw.choice([1, 60, 100, 127, 128, 129, 230])
        prompt = prefix[: draw.choice([0, 128, 128, 256])]
        prompt = prompt + [draw.randrange(VOCAB) for _ in range(own)]
        sampling = SamplingSettings(
            temperature=draw.choice([0.0, 0.7, 1.0]),
            top_k=draw.choice([None, 20]),
            top_p=draw.choice([1.0, 0.9]),
            min_p=draw.choice([0.0, 0.05]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            frequency_penalty=draw.choice([0.0, 0.5]),
            logit_bias=draw.choice([{}, {7: 3.0}]),
        )
        found.append(
            GenerationRequest(
                prompt,
                draw.randint(1, longest),
                sampling,
                seed=number,
                stop_ids=draw.choice([(), (3, 4)]),
                top_logprobs=draw.choice([None, 0, 3]),
                scope=draw.choice(["a", "b"]),
            )
        )
    return found


def drive(
    engine: Engine,
    asked: Sequence[GenerationRequest],
    arrivals: Sequence[int] | None = None,
    cancelled: dict[int, int] | None = None,
) -> list[list[Event]]:
    """Run requests to their end and return the events of each.

    Args:
        arrivals: the step in which each request arrives, ascending. None: all in the first step.
        cancelled: number of a request -> the step in which it is cancelled.
    """
    events: list[list[Event]] = [[] for _ in asked]
    running, step = [], 0
    while len(running) < len(asked) or engine.busy:
        while len(running) < len(asked) and (arrivals or [0] * len(asked))[len(running)] <= step:
            number = len(running)
            engine.check(asked[number])
            running.append(engine.add(asked[number], events[number].append))
        for number, when in (cancelled or {}).items():
            if when == step and number < len(running):
                running[number].cancelled = True
        engine.step()
        step += 1
    return events


def answer(events: Sequence[Event]) -> tuple[Any, ...]:
    """Everything about an answer that must not depend on its company."""
    end = events[-1]
    assert isinstance(end, Finished)
    return (*events[:-1], end.reason, end.new_tokens, end.stop_id)


def alone(model: Transformer, asked: Sequence[GenerationRequest]) -> list[tuple[Any, ...]]:
    """The answer to each request of an engine that has nothing else to do."""
    return [answer(drive(Engine(model, 10**5), [request])[0]) for request in asked]
