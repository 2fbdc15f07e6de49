"""LoRA against PEFT: the same files, the same logits."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
import transformers

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.adapters import Adapters, load_adapter, save_adapter
from lit_llm.models.hub.config_json import family_of
from lit_llm.models.lora import (
    LoRAConfig,
    apply_lora,
    lora_layers,
    merge_adapter,
    merge_lora,
    merged_weights,
    unmerge_adapter,
)
from lit_llm.models.transformer import Transformer

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_seq_len": 32,
}
FAMILIES = {
    "llama": {},
    "qwen3": {"qk_norm": "before_rope", "head_dim": 16},
    "gemma2": {"norm_offset": True, "post_norm": True, "mlp": "geglu", "head_dim": 16,
               "tie_embeddings": True, "embedding_scale": 32**0.5, "attention_softcap": 20.0,
               "logit_softcap": 30.0},
    "phi3": {"family": "phi3"},
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "learned_positions": True, "num_kv_heads": 4,
             "mlp_bias": True, "attention_bias": True, "attention_output_bias": True,
             "tie_embeddings": True},
    "gpt_neox": {"norm": "layernorm", "mlp": "gelu_erf", "residual": "parallel", "num_kv_heads": 4,
                 "mlp_bias": True, "attention_bias": True, "attention_output_bias": True},
    "cohere": {"norm": "layernorm", "norm_bias": False, "residual": "parallel_one_norm"},
    "nanochat": {"mlp": "relu2", "qk_norm": "after_rope", "norm_weight": False,
                 "embedding_norm": True, "logit_softcap": 15.0},
}  # fmt: skip
IDS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))


def adapted(family: str, config: LoRAConfig) -> Transformer:
    """A random model with random updates."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{**SHAPE, **FAMILIES[family]}))
    for parameter in model.parameters():  # the initial output projections are zero
        torch.nn.init.normal_(parameter, std=0.1)
    apply_lora(model, config)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_magnitude"):
            torch.nn.init.uniform_(parameter, 0.3, 1.5)
        elif "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "kind", [{}, {"rank_stabilized": True}, {"rank_stabilized": True, "dora": True}]
)
def test_peft_loads_ours_and_we_load_theirs(
    tmp_path: Path, family: str, kind: dict[str, bool]
) -> None:
    model = adapted(family, LoRAConfig(rank=3, alpha=7.0, **kind))
    assert family_of(model.config) == family
    save_adapter(model, tmp_path / "adapter", base="here")
    plain = copy.deepcopy(model)
    for layer in lora_layers(plain):
        layer.reset_update()
    merge_lora(plain)
    plain.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(IDS)
        torch.testing.assert_close(theirs(IDS).logits.float(), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain(IDS), expected, atol=1e-2)
        theirs.save_pretrained(tmp_path / "theirs")
        again = Transformer.from_pretrained(tmp_path / "base")
        load_adapter(again, tmp_path / "theirs")
        torch.testing.assert_close(again.eval()(IDS), expected, atol=1e-5, rtol=1e-5)
        merge_lora(again)
        torch.testing.assert_close(
            again(IDS), theirs.merge_and_unload()(IDS).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_that_peft_made(tmp_path: Path, targets: str | list[str]) -> None:
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4
    ))  # fmt: skip
    hf.save_pretrained(tmp_path / "base")
    made = peft.get_peft_model(
        hf,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM",
                        init_lora_weights=False)
    )  # fmt: skip
    made.save_pretrained(tmp_path / "adapter")
    model = Transformer.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS), made.eval()(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("targets", [["qkv_proj"], ["gate_up_proj", "o_proj"]])
def test_adapters_of_fused_layers(tmp_path: Path, targets: list[str]) -> None:
    hf = transformers.Phi3ForCausalLM(transformers.Phi3Config(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
    ))  # fmt: skip
    hf.save_pretrained(tmp_path / "base")
    made = peft.get_peft_model(
        hf,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM",
                        init_lora_weights=False)
    )  # fmt: skip
    made.save_pretrained(tmp_path / "adapter")
    model = Transformer.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS), made.eval()(IDS).logits, atol=1e-4, rtol=1e-4)


def test_merging_keeps_the_function_and_the_names() -> None:
    model = adapted("llama", LoRAConfig(rank=4, targets=("q_proj", "up_proj")))
    names = list(Transformer(model.config).state_dict())
    expected = model(IDS)
    state = dict(merged_weights(model))
    merge_lora(model)
    assert list(model.state_dict()) == names
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_and_unmerging(dora: bool) -> None:
    model = adapted("qwen3", LoRAConfig(rank=4, dora=dora))
    expected, weights = (
        model(IDS),
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    merge_adapter(model)
    merge_adapter(model)  # once is enough
    assert model.state_dict().keys() == weights.keys()
    assert not torch.equal(
        model.layers[0].mlp.up_proj.weight, weights["layers.0.mlp.up_proj.weight"]
    )
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)
    unmerge_adapter(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=3e-6 if dora else 1e-6, rtol=0)
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)


def test_several_adapters_of_one_model(tmp_path: Path) -> None:
    configs = {
        "a": LoRAConfig(rank=2),
        "b": LoRAConfig(rank=5, alpha=3.0, targets=("o_proj", "up_proj")),
    }
    expected = {}
    for name, config in configs.items():
        model = adapted("llama", config)
        save_adapter(model, tmp_path / name)
        expected[name] = model(IDS)
    base = adapted("llama", LoRAConfig())
    for layer in lora_layers(base):
        layer.remove()
    names, plain = list(base.state_dict()), base(IDS)
    bank = Adapters(base)
    for name in configs:
        bank.add(name, tmp_path / name)
    for name in ("a", "b", "a"):
        bank.use(name)
        torch.testing.assert_close(base(IDS), expected[name], atol=1e-5, rtol=1e-5)
    bank.use("b")
    merge_adapter(base)
    bank.use(None)
    assert list(base.state_dict()) == names
    torch.testing.assert_close(base(IDS), plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="no adapter named 'c'; known are a, b"):
        bank.use("c")


def test_training_starts_from_the_base_and_moves_the_updates_alone() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = model(IDS)
    apply_lora(model, LoRAConfig(rank=2, dropout=0.5))
    assert torch.equal(model(IDS), before)  # B is zero, whatever dropout does
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora" in name for name in trainable)
    model(IDS).sum().backward()
    assert {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    } == trainable


@pytest.mark.parametrize("tied", [False, True])
def test_adapted_on_meta_then_loaded(tmp_path: Path, tied: bool) -> None:
    base = Transformer(TransformerConfig(**SHAPE, tie_embeddings=tied))
    base.save_pretrained(tmp_path / "base")
    config = LoRAConfig(rank=2)
    torch.manual_seed(3)
    ours = Transformer.from_pretrained(
        tmp_path / "base", prepare=lambda model: apply_lora(model, config)
    )
    assert not any(parameter.is_meta for parameter in ours.parameters())
    torch.manual_seed(3)
    apply_lora(base, config)
    state = ours.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.state_dict().items())
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in base.named_parameters() if p.requires_grad
    }
    with pytest.raises(
        RuntimeError, match="lora_a"
    ):  # a model that is there does not forget its update in silence
        ours.load_state_dict(Transformer(base.config).state_dict())


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora.rank"):
        LoRAConfig(rank=0)
    with pytest.raises(UserError, match=r"lora.targets: unknown wq; known are q_proj"):
        LoRAConfig(targets=("wq",))
    model = adapted("llama", LoRAConfig(rank=2))
    save_adapter(model, tmp_path / "adapter")
    other = Transformer(TransformerConfig(**{**SHAPE, "hidden_size": 48}))
    with pytest.raises(UserError, match=r"another base: .* an update of a weight \(out 32"):
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter_config.json: no such file"):
        load_adapter(other, tmp_path / "nowhere")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"bias": "none"', '"bias": "none", "use_dora": true')
    )
    with pytest.raises(UserError, match=r"has no lora_magnitude_vector.* says use_dora=True"):
        load_adapter(Transformer(TransformerConfig(**SHAPE)), tmp_path / "adapter")
