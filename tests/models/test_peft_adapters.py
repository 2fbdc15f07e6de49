"""Adapter directories that PEFT made: the same logits as in PEFT, or a refusal that names the
reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from lit_llm.errors import UserError
from lit_llm.models.hub.adapters import Adapters, load_adapter, save_adapter
from lit_llm.models.lora import merge_lora
from lit_llm.models.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
IDS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))


def base(folder: Path, family: str, **fields: Any) -> Path:
    """A random model of transformers', every weight and bias away from its neutral value."""
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=61, n_positions=32, n_embd=32, n_layer=3, n_head=4, **fields
        )
    else:
        config = transformers.AutoConfig.for_model(family, **{**SMALL, "pad_token_id": 0, **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "base")
    return folder / "base"


def made(folder: Path, base: Path, **settings: Any) -> Path:
    """An adapter of random values, made and saved by PEFT."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, **settings})
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad or "lora_" in name or "tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


def logits_of_peft(base: Path, adapter: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(IDS).logits


QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "patterns": ("llama", {}, {
        "target_modules": ALL,
        "rank_pattern": {"model.layers.1.self_attn.q_proj": 2, r"layers\.\d+\.mlp\..*": 3,
                         "proj": 1, "v_proj": 8},
        "alpha_pattern": {"up_proj|down_proj": 11, r".*\.0\..*proj": 5, "o_pro": 100},
    }),
    "patterns, rank-stabilized": ("llama", {}, {
        "target_modules": ALL, "use_rslora": True, "rank_pattern": {"^model.layers.2.*": 2},
        "alpha_pattern": {"self_attn.k_proj": 3},
    }),
    "patterns of fused layers": ("phi3", {}, {
        "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "rank_pattern": {"qkv_proj": 6},
        "alpha_pattern": {r"0.*gate_up_proj": 9},
    }),
    "layers": ("llama", {}, {"target_modules": QV, "layers_to_transform": [0, 2]}),
    "one layer": ("llama", {},
                  {"target_modules": QV, "layers_to_transform": 1, "layers_pattern": "layers"}),
    "excluded": ("llama", {},
                 {"target_modules": ALL, "exclude_modules": ["1.mlp.up_proj", "k_proj"]}),
    "excluded by expression": (
        "llama", {}, {"target_modules": ALL, "exclude_modules": r".*\.[12]\..*_proj"}
    ),
    "expression": ("llama", {}, {"target_modules": r".*\.(0|2)\.self_attn\.[qv]_proj"}),
    "full names": ("llama", {},
                   {"target_modules": ["model.layers.1.mlp.up_proj", "0.self_attn.q_proj"]}),
    "saved": ("llama", {},
              {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "saved block": ("llama", {},
                    {"target_modules": ALL,
                     "modules_to_save": ["layers.1.mlp", "0.self_attn.q_proj"]}),
    "saved head of a tied model": (
        "qwen2", TIED, {"target_modules": QV, "modules_to_save": ["lm_head"]}
    ),
    "saved embedding of a tied model": (
        "qwen2", TIED, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}
    ),
    "saved tied": ("qwen2", TIED, {
        "target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "head": ("llama", {}, {"target_modules": [*QV, "lm_head"], "alpha_pattern": {"lm_head": 3}}),
    "embedding": ("llama", {},
                  {"target_modules": [*QV, "embed_tokens"], "rank_pattern": {"embed_tokens": 2}}),
    "head and embedding of a tied model": (
        "qwen2", TIED, {"target_modules": ["lm_head", "embed_tokens"]}
    ),
    "embedding, kept tied": ("qwen2", TIED, {
        "target_modules": [*QV, "embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "embedding of gpt2": ("gpt2", {},
                          {"target_modules": ["wte", "c_attn", "c_proj"], "fan_in_fan_out": True}),
    "biases of updated layers": ("qwen2", {}, {"target_modules": QV, "bias": "lora_only"}),
    "all biases": ("gpt2", {},
                   {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "gaussian": ("llama", {}, {"target_modules": QV, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {}, {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "dora": ("llama", {}, {"target_modules": ALL, "use_dora": True}),
    "dora, patterns, rank-stabilized": ("qwen2", {}, {
        "target_modules": ALL, "use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 3}}),
    "dora of fused layers": ("phi3", {}, {
        "target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "dora of gpt2": ("gpt2", {}, {
        "target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}),
    "dora of head and embedding": ("llama", {}, {
        "target_modules": ["q_proj", "lm_head", "embed_tokens"], "use_dora": True}),
    "dora of gpt2's embedding": ("gpt2", {}, {
        "target_modules": ["wte", "c_attn"], "use_dora": True, "fan_in_fan_out": True}),
    "rows of the embedding": ("llama", {}, {
        "target_modules": QV, "trainable_token_indices": [41, 5]}),
    "rows of embedding and head": ("llama", {}, {
        "target_modules": QV, "trainable_token_indices": {"embed_tokens": [5, 60],
                                                            "lm_head": [9]}}),
    "rows of a tied model": ("qwen2", TIED, {
        "target_modules": QV, "trainable_token_indices": [45, 4]}),
    "equal rows of a tied model": ("qwen2", TIED, {
        "target_modules": QV,
        "trainable_token_indices": {"embed_tokens": [5, 4], "lm_head": [5, 4]}}),
    "different rows of a tied model": ("qwen2", TIED, {
        "target_modules": QV, "trainable_token_indices": {"embed_tokens": [5], "lm_head": [4]}}),
    "rows of a tied head": ("qwen2", TIED, {
        "target_modules": QV, "trainable_token_indices": {"lm_head": [4, 8]}}),
    "rows beside a saved head": ("llama", {}, {
        "target_modules": QV, "trainable_token_indices": {"embed_tokens": [1]},
        "modules_to_save": ["lm_head"]}),
    "rows of gpt2": ("gpt2", {}, {
        "target_modules": ["c_attn"], "trainable_token_indices": {"wte": [15, 60]},
        "fan_in_fan_out": True}),
    "mica": ("llama", {}, {"target_modules": QV, "init_lora_weights": "mica"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_as_in_peft(tmp_path: Path, case: str) -> None:
    family, fields, settings = CASES[case]
    folder = base(tmp_path, family, **fields)
    adapter = made(tmp_path, folder, **settings)
    expected = logits_of_peft(folder, adapter)
    model = Transformer.from_pretrained(folder).eval()
    with torch.no_grad():
        plain = model(IDS)
        assert not torch.allclose(plain, expected, atol=1e-2)
        load_adapter(model, adapter)
        torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)
        merge_lora(model)
        torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path / "merged")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_a_model_without_a_head_and_as_a_pickle(tmp_path: Path) -> None:
    folder = base(tmp_path, "llama")
    bare = transformers.AutoModel.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1],
                             layers_pattern="layers", init_lora_weights=False)  # fmt: skip
    adapter = tmp_path / "adapter"
    peft.get_peft_model(bare, config).save_pretrained(adapter, safe_serialization=False)
    assert not (adapter / "adapter_model.safetensors").exists()
    bare = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = peft.PeftModel.from_pretrained(bare, adapter).eval()(IDS).last_hidden_state
        model = Transformer.from_pretrained(folder).eval()
        load_adapter(model, adapter)
        torch.testing.assert_close(model.hidden_states(IDS), hidden, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rename", ["{}", "_orig_mod.{}", "default", "both"])
def test_names_of_a_state_dict_saved_as_it_is(tmp_path: Path, rename: str) -> None:
    """Of a compiled model, and with the adapter's name in them."""
    folder, adapter = base(tmp_path, "llama"), tmp_path / "adapter"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(adapter)
    file = adapter / "adapter_model.safetensors"
    names = rename if "{}" in rename else "_orig_mod.{}" if rename == "both" else "{}"
    tensors = {
        names.format(name): value for name, value in safetensors.torch.load_file(file).items()
    }
    if rename in ("default", "both"):
        tensors = {
            name.replace("A.weight", "A.default.weight").replace(
                "B.weight", "B.default.weight"
            ): value
            for name, value in tensors.items()
        }
    safetensors.torch.save_file(tensors, file)
    model = Transformer.from_pretrained(folder).eval()
    load_adapter(model, adapter)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_experts_of_an_adapter_from_before_transformers_5(tmp_path: Path) -> None:
    """There each expert was three linear layers; PEFT 0.21 brings such tensors to transformers 5's
    stacks."""
    folder = base(tmp_path, "mixtral", num_local_experts=2, num_experts_per_tok=1)
    model = Transformer.from_pretrained(folder).eval()
    name = "base_model.model.model.layers.1.block_sparse_moe.experts.1.w2"
    a, b = torch.randn(2, 48), torch.randn(32, 2)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    safetensors.torch.save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        adapter / "adapter_model.safetensors",
    )
    write(
        adapter,
        {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["1.block_sparse_moe.experts.1.w2"],
        },
    )
    before = model.layers[1].mlp.experts.down_proj.clone()
    load_adapter(model, adapter)
    change = model.layers[1].mlp.experts.down_proj - before
    torch.testing.assert_close(change[1], 1.5 * b @ a)
    assert not change[0].any()


def write(adapter: Path, content: dict[str, Any]) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("settings", [
    {"target_modules": ["qkv_proj", "o_proj"], "rank_pattern": {"1.*o_proj": 2},
     "layers_to_transform": [0, 1]},
    {"target_modules": ["qkv_proj"], "alpha_pattern": {"qkv_proj": 2}, "use_rslora": True},
])  # fmt: skip
def test_what_was_loaded_is_saved_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = base(tmp_path, "phi3")
    adapter = made(tmp_path, folder, **settings)
    model = Transformer.from_pretrained(folder)
    load_adapter(model, adapter)
    save_adapter(model, tmp_path / "again")
    torch.testing.assert_close(
        logits_of_peft(folder, tmp_path / "again"),
        logits_of_peft(folder, adapter),
        atol=1e-4,
        rtol=1e-4,
    )
    files = [
        safetensors.torch.load_file(f / "adapter_model.safetensors")
        for f in (adapter, tmp_path / "again")
    ]
    assert {n: t.shape for n, t in files[0].items()} == {n: t.shape for n, t in files[1].items()}


def test_adapters_that_replace_weights_are_exchanged(tmp_path: Path) -> None:
    folder = base(tmp_path, "qwen2", **TIED)
    settings = {
        "saved": {"target_modules": QV, "modules_to_save": ["lm_head"]},
        "head": {"target_modules": ["lm_head", "embed_tokens"]},
        "plain": {"target_modules": QV},
    }
    model = Transformer.from_pretrained(folder).eval()
    bank, expected = Adapters(model), {}
    with torch.no_grad():
        plain = model(IDS)
        for name, its in settings.items():
            adapter = made(tmp_path / name, folder, **its)
            expected[name] = logits_of_peft(folder, adapter)
            bank.add(name, adapter)
            bank.use(name)  # the next one is added while this one is in use
        for name in ["head", "plain", "saved", "head"]:
            bank.use(name)
            torch.testing.assert_close(model(IDS), expected[name], atol=1e-4, rtol=1e-4)
        with pytest.raises(UserError, match="replaced whole weights"):
            save_adapter(model, tmp_path / "out")
        bank.use(None)
        assert torch.equal(model(IDS), plain) and model.config.tie_embeddings
        assert model.head.weight is model.embed.weight


OTHER_KINDS = {
    "init_lora_weights": [
        "pissa",
        "pissa_niter_4",
        "olora",
        "loftq",
        "corda",
        "lora_ga",
        "of_tomorrow",
    ],
    "alora_invocation_tokens": [[1, 2]],
    "use_qalora": [True],
    "layer_replication": [[[0, 2], [1, 3]]],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "lora_bias": [True],
    "target_parameters": [["experts.gate_up_proj"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 3}],
    "kasa_config": [{"beta": 1e-4}],
    "velora_config": [{"num_groups": 64}],
    "monteclora_config": [{"num_samples": 2}],
    "peft_type": ["ADALORA", "LOHA", None],
    "task_type": ["SEQ_CLS"],
    "bias": ["everything"],
    "a_field_of_tomorrow": [1, "on", {"deep": {}}],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Path]:
    folder = tmp_path_factory.mktemp("plain")
    model = base(folder, "llama")
    return Transformer.from_pretrained(model), made(folder, model, target_modules=QV)


@pytest.mark.parametrize("field", OTHER_KINDS)
def test_other_kinds_of_adapters_are_refused_by_name(
    plain: tuple[Transformer, Path], tmp_path: Path, field: str
) -> None:
    content = json.loads((plain[1] / "adapter_config.json").read_text())
    for value in OTHER_KINDS[field]:
        write(tmp_path, {**content, field: value})
        with pytest.raises(UserError, match=rf"adapter_config.json: {field}="):
            load_adapter(plain[0], tmp_path)


def test_every_field_of_this_peft_is_known() -> None:
    from lit_llm.models.hub.adapter_config import _READ, _WITHOUT_EFFECT

    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert not (fields - _READ - _WITHOUT_EFFECT - OTHER_KINDS.keys())
    assert not (OTHER_KINDS.keys() & (_READ | _WITHOUT_EFFECT)) - {
        "init_lora_weights", "peft_type", "task_type", "bias"
    }  # fmt: skip


def test_fields_without_effect_and_off(plain: tuple[Transformer, Path], tmp_path: Path) -> None:
    content = json.loads((plain[1] / "adapter_config.json").read_text())
    write(tmp_path,
          {**content, "a_field_of_tomorrow": None, "another": False, "qalora_group_size": 8,
           "eva_config": {"rho": 2.0}, "auto_mapping": {"base_model_class": "X"}})  # fmt: skip
    (tmp_path / "adapter_model.safetensors").symlink_to(plain[1] / "adapter_model.safetensors")
    load_adapter(Transformer(plain[0].config), tmp_path)


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        ({f"{LAYER}.lora_A.weight": None, f"{LAYER}.lora_B.weight": None}, {},
         r"incomplete: adapter_config.json adapts model.layers.1.self_attn.q_proj, and there is no "
         r"tensor"),
        ({f"{LAYER}.lora_B.weight": None}, {}, r"incomplete: model.layers.1.self_attn.q_proj has "
                                               r"no lora_B"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(4, 40)}, {"base_model_name_or_path": "hub/other"},
         r"another base \(hub/other\): .*q_proj has an update of a weight \(out 32, in "
         r"40\).*\(out 32, in 32\)"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(3, 32)}, {}, r"q_proj has lora_A \(3, 32\).*says "
                                                             r"rank 4"),
        ({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}, {},
         r"another base: it has tensors for model.layers.7.mlp.up_proj.weight, which this model "
         r"does not have"),
        ({"base_model.model.lm_head.weight": torch.zeros(64, 32)}, {},
         r"another base: lm_head.weight has shape \(64, 32\), this model's is \(61, 32\)"),
        ({"base_model.model.score.weight": torch.zeros(2, 32)}, {}, r"tensors for score.weight"),
        ({"lora_A.weight": torch.zeros(4, 32)}, {}, r"tensor lora_A.weight: PEFT's begin with "
                                                    r"base_model.model"),
        ({}, {"exclude_modules": ["q_proj"]}, r"updates of .*q_proj.*adapter_config.json does not "
                                              r"adapt"),
        ({}, {"layers_to_transform": [0]}, r"updates of model.layers.[12].*does not adapt"),
        ({}, {"modules_to_save": ["lm_head"]}, r"incomplete: adapter_config.json saves lm_head "
                                               r"\(modules_to_save\)"),
        ({}, {"r": 0}, r"r must be a number above 0, got 0"),
        ({}, {"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern must be ranks by name, got "
                                                r"\{'q_proj': 2.5\}"),
        ({}, {"alpha_pattern": {"q_proj(": 2}}, r"alpha_pattern: 'q_proj\(' is no regular "
                                                r"expression"),
        ({}, {"target_modules": 3}, r"target_modules must be a string or list of strings, got 3"),
        ({}, {"target_modules": ".*", "layers_to_transform": [1]}, r"layers_to_transform needs a "
                                                                   r"list of target"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_says_why(
    plain: tuple[Transformer, Path],
    tmp_path: Path,
    change: dict[str, torch.Tensor | None],
    config: dict[str, Any],
    said: str,
) -> None:
    model, adapter = plain
    tensors = {**safetensors.torch.load_file(adapter / "adapter_model.safetensors"), **change}
    kept = {name: value for name, value in tensors.items() if value is not None}
    safetensors.torch.save_file(kept, tmp_path / "adapter_model.safetensors")
    content = json.loads((adapter / "adapter_config.json").read_text())
    write(tmp_path, {**content, "base_model_name_or_path": None, **config})
    with pytest.raises(UserError, match=said):
        load_adapter(model, tmp_path)
