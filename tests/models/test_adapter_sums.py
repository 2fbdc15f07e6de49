"""Adapters of one base that hold different things: switched between, and added to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_llm import LoRAConfig, Transformer
from lit_llm.models.added_tokens import with_tokens
from lit_llm.models.hub.adapter_choice import BASE, AdapterChoice
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.merge import Part, add_updates
from lit_llm.models.lora import apply_lora
from lit_llm.models.token_rows import add_token_rows

TOKENS = ["<a>", "<b>"]
TABLES = ("embed", "head")
# Name -> settings of LoRA, added tokens, and whether PEFT untied head and embedding.
KINDS: dict[str, tuple[dict[str, Any], list[str], bool]] = {
    "plain": ({"targets": ("q_proj", "o_proj")}, [], False),
    "whole": ({"train_modules": TABLES}, [], False),
    "untied": ({"train_modules": TABLES}, [], True),
    "rows": ({}, TOKENS, False),
    "rows of dora": ({"dora": True}, TOKENS, False),
    "whole with tokens": ({"train_modules": TABLES}, TOKENS, False),
    "untied with tokens": ({"train_modules": TABLES}, TOKENS, True),
}


def draw(model: Transformer) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def base(
    request: pytest.FixtureRequest,
    bare_base: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_seq_len": 64}
    folder = tmp_path_factory.mktemp("base")
    return bare_base(folder, "Is it right? yes no", draw, **shape, tie_embeddings=request.param)


def write(folder: Path, base: Path, name: str) -> Path:
    """Write an adapter of one of the `KINDS`, with random values."""
    settings, tokens, untied = KINDS[name]
    model, tokenizer = load_model(base)
    tokenizer, added = with_tokens(tokenizer, tokens)
    add_token_rows(model, added.values())
    apply_lora(model, LoRAConfig(rank=2, **settings), added.values())
    torch.manual_seed(list(KINDS).index(name))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(model, folder, base=str(base))
    tokenizer.save_pretrained(folder)
    if untied:  # as PEFT writes it without `ensure_weight_tying`
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text())
        config.pop("ensure_weight_tying", None)
        file.write_text(json.dumps(config))
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors |= {n: t + 0.1 * torch.randn_like(t) for n, t in tensors.items() if "lm_head" in n}
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("adapters")
    return {name: write(parent / name, base, name) for name in KINDS}


@torch.no_grad()
def test_switching_gives_the_merged_model(base: Path, adapters: dict[str, Path]) -> None:
    choice, ids = AdapterChoice(base, adapters, "cpu"), torch.arange(60)[None]
    merged = {name: load_model(base, adapters.get(name)) for name in (BASE, *KINDS)}
    for name in (*KINDS, BASE, *reversed(KINDS), BASE):
        choice.use(name)
        model, tokenizer = merged[name]
        torch.testing.assert_close(choice.model(ids), model(ids), rtol=1e-3, atol=1e-3)
        assert choice.tokenizer.backend.get_vocab() == tokenizer.backend.get_vocab()


def weights(model: Transformer, name: str) -> torch.Tensor:
    return model.get_submodule(name).weight.detach()


def test_half_of_two_is_the_mean_of_their_merged_models(
    base: Path, adapters: dict[str, Path]
) -> None:
    merged = {name: load_model(base, folder)[0] for name, folder in adapters.items()}
    for pair in combinations(KINDS, 2):
        found, _ = load_model(base)
        add_updates(found, [Part(adapters[name], 0.5) for name in pair])
        for name in (*TABLES, "layers.0.attention.q_proj"):
            one, other, both = (weights(m, name) for m in (*map(merged.get, pair), found))
            rows = min(len(one), len(other))  # one of the two may have more tokens
            expected = (one[:rows] + other[:rows]) / 2
            torch.testing.assert_close(both[:rows], expected, rtol=1e-4, atol=1e-4, msg=str(pair))
