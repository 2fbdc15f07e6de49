"""Settings of config.json that programs read in different ways: as transformers, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.config_json import config_from_hf, config_to_hf
from lit_llm.models.hub.families import FAMILIES
from lit_llm.models.transformer import Transformer

WHOLE_HEADS = [name for name in FAMILIES if name not in ("gpt2", "gpt_neox", "phi3", "stablelm")]


def small(**fields: object) -> Transformer:
    """A random model of three layers whose attention moves its logits."""
    shape = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4,
             "num_kv_heads": 2, "max_seq_len": 32, "intermediate_size": 48}  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.from_dict({**shape, **fields})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def compare(folder: Path, model: Transformer | None = None) -> Any:
    """Hold the logits of ``folder`` in transformers against ours, or those of ``model``."""
    ids = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ours = model or Transformer.from_pretrained(folder).eval()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    return theirs


def change(folder: Path, **keys: object) -> None:
    """Set keys of the config.json in ``folder``; None removes a key."""
    file = folder / "config.json"
    hf = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in hf.items() if value is not None}))


def test_a_part_of_a_head_is_written_as_a_family_that_reads_it(tmp_path: Path) -> None:
    model = small(rotary_fraction=0.5, family="llama")
    model.save_pretrained(tmp_path)
    assert compare(tmp_path, model).config.model_type == "phi3"
    assert Transformer.from_pretrained(tmp_path).config.rotary_fraction == 0.5


@pytest.mark.parametrize("fields", [{"qk_norm": "before_rope"}, {"num_experts": 4}])
def test_a_part_of_a_head_is_written_in_our_format_where_no_family_has_it(fields: dict) -> None:
    config = small(rotary_fraction=0.5, **fields).config
    hf = config_to_hf(config, torch.float32)
    assert hf["model_type"] == "lit_llm"
    assert config_from_hf(hf, "here") == config


@pytest.mark.parametrize("name", WHOLE_HEADS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_part_of_a_head_is_refused_where_transformers_turns_all(name: str, inside: bool) -> None:
    def hf(factor: float) -> dict:
        part = {"partial_rotary_factor": factor}
        return {"model_type": name, **({"rope_parameters": part} if inside else part)}

    with pytest.raises(UserError, match=rf"^here: partial_rotary_factor=0.5 .* for {name}: "):
        config_from_hf(hf(0.5), "here")
    with pytest.raises(UserError, match=r"partial_rotary_factor=0 "):
        config_from_hf(hf(0), "here")
    assert config_from_hf(hf(1.0), "here").rotary_fraction == 1.0


def test_a_part_of_a_head_in_windowed_layers_is_refused() -> None:
    rope = {"full_attention": {}, "sliding_attention": {"partial_rotary_factor": 0.5}}
    with pytest.raises(UserError, match=r"partial_rotary_factor=0.5"):
        config_from_hf({"model_type": "gemma3_text", "rope_parameters": rope}, "here")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default", "factor": 4.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "finetuned": True},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
         "attn_factor": 1.0},
    ],
)  # fmt: skip
def test_rope_keys_that_change_nothing_are_read(scaling: dict, tmp_path: Path) -> None:
    small(family="llama").save_pretrained(tmp_path)
    change(tmp_path, rope_scaling=scaling, rope_parameters=None)
    compare(tmp_path)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 4.0}, "got 'default'"),
        ({"type": "yarn", "factor": 4.0, "attn_factor": 2.0}, "yarn has no attn_factor"),
        ({"type": "linear", "factor": 4.0, "finetuned": True}, "linear has no finetuned"),
    ],
)
def test_rope_keys_that_may_change_something_are_refused(scaling: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_hf({"model_type": "llama", "rope_scaling": scaling}, "here")


@pytest.mark.parametrize("windowed", [[], [1], [0, 1, 2]])
def test_layer_types_of_mistral_say_which_layers_have_a_window(
    windowed: list[int], tmp_path: Path
) -> None:
    types = ["sliding_attention" if layer in windowed else "full_attention" for layer in range(3)]
    small(family="mistral", sliding_window=4).save_pretrained(tmp_path / "all")
    change(tmp_path / "all", layer_types=types)
    assert type(compare(tmp_path / "all")).__name__ == "MinistralForCausalLM"
    ours = Transformer.from_pretrained(tmp_path / "all").eval()
    assert [i for i in range(3) if ours.config.window(i) == 4] == windowed
    ours.save_pretrained(tmp_path / "again")
    assert compare(tmp_path / "again", ours).config.model_type in ("mistral", "ministral")
    assert Transformer.from_pretrained(tmp_path / "again").config == ours.config


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma2", "smollm3"])
@pytest.mark.parametrize("window", [True, False])
def test_layers_of_other_kinds_are_refused(name: str, window: bool) -> None:
    hf = {"model_type": name, "num_hidden_layers": 2, "use_sliding_window": window,
          "sliding_window": 4, "layer_types": ["full_attention", "linear_attention"]}  # fmt: skip
    with pytest.raises(UserError, match=r"^here: layer_types: 'linear_attention' is not supported"):
        config_from_hf(hf, "here")


def test_layer_types_are_as_many_as_layers() -> None:
    hf = {"model_type": "mistral", "num_hidden_layers": 3, "layer_types": ["sliding_attention"]}
    with pytest.raises(UserError, match=r"^here: layer_types: 1 of 3 layers"):
        config_from_hf(hf, "here")
