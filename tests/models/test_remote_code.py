"""Directories with their own modelling file, read by transformers in a process without lit_llm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.adapters import load_adapter, save_adapter
from lit_llm.models.hub.config_json import readers_of
from lit_llm.models.hub.gguf.names import gguf_arch_of
from lit_llm.models.hub.remote_code import not_computed
from lit_llm.models.lora import apply_lora
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.models.presets import PRESETS
from lit_llm.models.transformer import Transformer

SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "max_seq_len": 96,
}  # fmt: skip
MIXED: dict[str, Any] = {
    "embedding_norm": True, "norm_weight": False, "mlp": "relu2", "qk_norm": "after_rope",
    "logit_softcap": 15.0, "value_embeddings": [0, 2], "value_gate_channels": 12,
    "smear_channels": 24, "embedding_mix": True, "backout_layer": 1, "bigram_rows": 40,
    "exclusive_attention": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "all parts": MIXED,
    "windows and biases": {
        **MIXED, "sliding_window": 6, "sliding_layers": [0, 1], "nope_layers": [2], "mlp": "gelu",
        "attention_bias": True, "attention_output_bias": True, "mlp_bias": True,
        "value_gate_channels": None, "rotary_fraction": 0.5, "attention_scale": 0.3,
    },
    "scales and tied": {
        "tie_embeddings": True, "norm_offset": True, "post_norm": True, "qk_norm": "before_rope",
        "mlp": "geglu", "embedding_scale": 5.0, "residual_scale": 0.5, "logit_scale": 0.25,
        "bigram_rows": 100,
    },
}  # fmt: skip
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
# Loads each folder, and writes logits and answers beside the weights.
CHILD = """
import sys
import peft
import torch
import transformers

for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model = model.eval()
    ids = torch.load(folder + "/ids.pt")
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    how = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    beams = dict(num_beams=3, max_new_tokens=8, **how)
    with torch.no_grad():
        found = {
            "logits": model(ids).logits,
            "loss": model(ids, labels=ids).loss,
            "greedy": model.generate(ids, max_new_tokens=50, **how),
            "together": model.generate(padded, attention_mask=mask, max_new_tokens=12, **how),
            "beams": model.generate(ids, **beams),
            "beams without a cache": model.generate(ids, use_cache=False, **beams),
        }
    model.save_pretrained(folder + "/again")
    adapted = peft.PeftModel.from_pretrained(model, folder + "/adapter")
    with torch.no_grad():
        found["adapted"] = adapted(input_ids=ids).logits
    torch.save(found, folder + "/found.pt")
"""


def randomized(fields: dict[str, Any]) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{**SHAPE, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def adapted(fields: dict[str, Any]) -> Transformer:
    model = randomized(fields)
    apply_lora(model, LoRAConfig(rank=2))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_transformers_computes_the_same_without_lit_llm(tmp_path: Path) -> None:
    models = {name: randomized(fields) for name, fields in MODELS.items()}
    ids = torch.randint(1, 61, (2, 17))  # generate takes the padding token for padding: without it
    folders = []
    for (name, model), fields in zip(models.items(), MODELS.values(), strict=True):
        folder = tmp_path / name.replace(" ", "_")
        model.save_pretrained(folder)
        torch.save(ids, folder / "ids.pt")
        save_adapter(adapted(fields), folder / "adapter", str(folder))
        folders.append(str(folder))
    # With None in sys.modules, an import of lit_llm fails, wherever it is installed.
    before = f"import sys\nsys.modules['lit_llm'] = None\nPROMPTS = {PROMPTS}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", before + CHILD, *folders],
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, model, fields in zip(folders, models.values(), MODELS.values(), strict=True):
        found = torch.load(Path(folder) / "found.pt")
        with torch.no_grad():
            logits = model(ids)
        # A token that attends mostly to itself loses most of what its heads return, and rounding
        # errors stay: they are compared with the largest logit.
        close = {"atol": 1e-5 * max(1.0, logits.abs().max().item()), "rtol": 1e-5}
        torch.testing.assert_close(found["logits"], logits, **close)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(found["loss"], loss)
        assert found["greedy"][:, 17:].tolist() == generate(model, ids.tolist(), 50, GREEDY)
        assert found["together"][:, 6:].tolist() == generate(model, PROMPTS, 12, GREEDY)
        assert torch.equal(found["beams"], found["beams without a cache"])
        loaded = Transformer.from_pretrained(folder)
        load_adapter(loaded, Path(folder) / "adapter")
        for updated in (adapted(fields), loaded):
            with torch.no_grad():
                logits = updated.eval()(ids)
            torch.testing.assert_close(found["adapted"], logits, **close)
        again = Transformer.from_pretrained(Path(folder) / "again")  # what transformers saved
        assert again.config == model.config
        assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"norm": "layernorm"}, ["norm"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_scaling"]),
        ({"mlp": "swiglu", "num_experts": 4, "norm_weight": True}, ["num_experts"]),
        ({"attention_softcap": 5.0, "qk_norm": "projection"}, ["attention_softcap", "qk_norm"]),
    ],
)
def test_what_the_file_does_not_compute_gets_no_file(
    fields: dict[str, Any], missing: list[str], tmp_path: Path
) -> None:
    model = randomized({**MIXED, **fields})
    assert not_computed(model.config) == missing
    assert readers_of(model.config).startswith("lit_llm alone")
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert Transformer.from_pretrained(tmp_path).config == model.config


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("fast-")])
def test_fast_presets_leave_with_the_file(preset: str) -> None:
    config = TransformerConfig.from_preset(preset)
    assert not not_computed(config) and config.mixing_parts


def test_who_reads_a_directory() -> None:
    assert readers_of(TransformerConfig()) == "transformers and vLLM"
    mixed = TransformerConfig(**SHAPE, **MIXED)
    assert readers_of(mixed) == "lit_llm, and transformers with trust_remote_code=True"


def test_gguf_names_the_parts_that_it_cannot_express() -> None:
    with pytest.raises(UserError, match=r"llama\.cpp has no value_embeddings, value_gate_channels, "
                       "smear_channels, bigram_rows, exclusive_attention, embedding_mix, "
                       "backout_layer; export"):  # fmt: skip
        gguf_arch_of(TransformerConfig(**SHAPE, **MIXED))
    with pytest.raises(UserError, match=r"llama\.cpp has no smear_channels; export"):
        gguf_arch_of(TransformerConfig(**SHAPE, smear_channels=8))
