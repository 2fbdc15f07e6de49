"""DoRA and what is trained beside updates, against PEFT: the same steps, files and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.dora import row_norms
from lit_llm.models.hub.adapters import load_adapter, save_adapter
from lit_llm.models.lora import (
    LoRALinear,
    apply_lora,
    lora_layers,
    merge_lora,
    merged_weights,
    trained_whole,
)
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.models.transformer import Transformer

IDS = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(1))
FIELDS = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": None,  # transformers never trains the row of a padding token
}  # fmt: skip


def base(folder: Path, family: str = "qwen2", **fields: Any) -> Path:
    """A random model of transformers', with biases in its projections."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**FIELDS, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "base")
    return folder / "base"


def loss(logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def trained(
    folder: Path, base: Path, ours: LoRAConfig, theirs: dict[str, Any], steps: int = 5
) -> tuple[Transformer, Any]:
    """Our model and PEFT's after some steps of AdamW from the same weights."""
    model = Transformer.from_pretrained(base, torch.float32)
    apply_lora(model, ours)
    save_adapter(model, folder / "start")
    hf = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft_model = peft.get_peft_model(
        hf, peft.LoraConfig(task_type="CAUSAL_LM", r=ours.rank, lora_alpha=ours.alpha, **theirs)
    )
    start = safetensors.torch.load_file(folder / "start" / "adapter_model.safetensors")
    said = peft.set_peft_model_state_dict(peft_model, start)
    assert not said.unexpected_keys
    for net in (model, peft_model):
        params = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0)
        net.train()
        for _ in range(steps):
            output = net(IDS)
            loss(output if isinstance(output, Tensor) else output.logits).backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
    return model, peft_model


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("stabilized", [False, True])
def test_dora_trains_as_in_peft(tmp_path: Path, stabilized: bool) -> None:
    folder = base(tmp_path)
    ours = LoRAConfig(rank=4, alpha=6.0, dora=True, rank_stabilized=stabilized)
    theirs = {"target_modules": ALL, "use_dora": True, "use_rslora": stabilized}
    model, other = trained(tmp_path, folder, ours, theirs)
    before = Transformer.from_pretrained(folder, torch.float32)
    with torch.no_grad():
        expected = other(IDS).logits
        assert (before(IDS) - expected).abs().max() > 0.1
        torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)
        state = {n: v for n, v in other.state_dict().items() if "magnitude" in n}
        layer = model.layers[1].mlp.up_proj
        name = "base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector.default.weight"
        torch.testing.assert_close(layer.lora_magnitude, state[name], atol=1e-5, rtol=1e-5)
        start = torch.linalg.vector_norm(layer.weight, dim=1)
        assert (layer.lora_magnitude - start).abs().min() > 1e-4  # every magnitude moved
        # Out: PEFT computes the same from our files. In, and merged into plain weights.
        save_adapter(model, tmp_path / "out")
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
        read = peft.PeftModel.from_pretrained(hf, tmp_path / "out").eval()
        torch.testing.assert_close(read(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        other.save_pretrained(tmp_path / "theirs")
        load_adapter(before, tmp_path / "theirs")
        torch.testing.assert_close(before(IDS), expected, atol=1e-5, rtol=1e-5)
        merge_lora(before)
        torch.testing.assert_close(before(IDS), expected, atol=1e-4, rtol=1e-5)


def test_the_dropout_of_dora_is_that_of_peft(tmp_path: Path) -> None:
    """One layer with a bias, the same mask on both sides."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16)
    plain = torch.nn.Sequential(torch.nn.Linear(24, 16))
    plain[0].load_state_dict(linear.state_dict())
    theirs = peft.get_peft_model(
        plain, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"], use_dora=True,
                               lora_dropout=0.4, init_lora_weights=False)
    ).train()  # fmt: skip
    layer = theirs.base_model.model[0]

    ours = LoRALinear.adapt(linear, LoRAConfig(rank=3, alpha=5, dropout=0.4, dora=True)).train()
    ours.lora_a.data.copy_(layer.lora_A["default"].weight)
    ours.lora_b.data.copy_(layer.lora_B["default"].weight)
    ours.lora_magnitude.data.copy_(layer.lora_magnitude_vector["default"].weight * 1.1)
    layer.lora_magnitude_vector["default"].weight.data.mul_(1.1)
    x = torch.randn(7, 24)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(net(x))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(
        ours.lora_a.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        ours.lora_magnitude.grad, layer.lora_magnitude_vector["default"].weight.grad
    )


def test_norms_of_rows_without_their_sum() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(40, 30), torch.randn(3, 30), torch.randn(40, 3)
    weight[5] = 0
    b[5] = 0
    expected = torch.linalg.vector_norm(weight.double() + 1.7 * b.double() @ a.double(), dim=1)
    torch.testing.assert_close(row_norms(weight, a, b, 1.7).double(), expected, rtol=1e-6, atol=0)


def test_dora_starts_from_the_base_and_its_magnitudes_train() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16)
    before = model(IDS)
    apply_lora(model, LoRAConfig(rank=2, dora=True))
    torch.testing.assert_close(model(IDS), before)
    model(IDS).float().square().sum().backward()
    for layer in lora_layers(model):
        assert layer.lora_magnitude is not None and layer.lora_magnitude.dtype == torch.float32
        assert layer.lora_magnitude.grad.abs().sum() > 0
        assert layer.merged_weight().dtype == torch.bfloat16


def test_dora_adapted_on_meta_then_loaded(tmp_path: Path) -> None:
    folder = base(tmp_path)
    config = LoRAConfig(rank=2, dora=True)
    torch.manual_seed(3)
    ours = Transformer.from_pretrained(folder, prepare=lambda model: apply_lora(model, config))
    torch.manual_seed(3)
    other = Transformer.from_pretrained(folder)
    apply_lora(other, config)
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())


WHOLE: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "both": ({}, ("embed", "head"), {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "head": ({}, ("head",), {"modules_to_save": ["lm_head"]}),
    "norms": ({}, ("norms",), {"modules_to_save": ["norm", "input_layernorm",
                                                   "post_attention_layernorm"]}),
    "tied": ({"tie_word_embeddings": True}, ("embed",),
             {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_modules_trained_whole_as_in_peft(tmp_path: Path, case: str) -> None:
    fields, modules, theirs = WHOLE[case]
    folder = base(tmp_path, **fields)
    ours = LoRAConfig(rank=2, targets=("q_proj", "v_proj"), train_modules=modules)
    theirs = {"target_modules": ["q_proj", "v_proj"], **theirs}
    model, other = trained(tmp_path, folder, ours, theirs)
    assert (model.head.weight is model.embed.weight) == (case == "tied")
    moved = dict(trained_whole(model))
    plain = Transformer.from_pretrained(folder, torch.float32).state_dict()
    assert moved and all((plain[n] != w).any() for n, w in moved.items())
    with torch.no_grad():
        expected = other(IDS).logits
        torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)
        save_adapter(model, tmp_path / "out")
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
        read = peft.PeftModel.from_pretrained(hf, tmp_path / "out").eval()
        torch.testing.assert_close(read(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        # What PEFT saves is read, and written again.
        other.save_pretrained(tmp_path / "theirs")
        again = Transformer.from_pretrained(folder, torch.float32)
        load_adapter(again, tmp_path / "theirs")
        torch.testing.assert_close(again(IDS), expected, atol=1e-5, rtol=1e-5)
        save_adapter(again, tmp_path / "again")
        read = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "again"
        )
        torch.testing.assert_close(read.eval()(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_trained_whole_is_float32_and_merges_into_the_bases_dtype(tmp_path: Path) -> None:
    folder = base(tmp_path, tie_word_embeddings=True)
    model = Transformer.from_pretrained(folder, torch.bfloat16)
    apply_lora(model, LoRAConfig(rank=2, train_modules=["head", "norms"]))
    kinds = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert set(kinds.values()) == {torch.float32}
    assert "embed.weight" in kinds and "layers.0.mlp_norm.weight" in kinds
    assert model.head.weight is model.embed.weight
    assert {v.dtype for _, v in merged_weights(model)} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "out", state_dict=dict(merged_weights(model)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    merge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=0.1, rtol=0.1)


def test_targets_and_patterns_by_expression() -> None:
    model = Transformer(TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=4))
    config = LoRAConfig(
        rank=4,
        targets=r"layers\.(1)\.(attention\.[qv]_proj|mlp\..*)",
        rank_pattern={"q_proj": 2, r"mlp\.(up|down)_proj": 3},
        alpha_pattern={"v_proj": 8},
    )
    apply_lora(model, config)
    ranks = {n: len(m.lora_a) for n, m in model.named_modules() if hasattr(m, "lora_a")}
    assert ranks == {
        "layers.1.attention.q_proj": 2, "layers.1.attention.v_proj": 4,
        "layers.1.mlp.gate_proj": 4, "layers.1.mlp.up_proj": 3, "layers.1.mlp.down_proj": 3,
    }  # fmt: skip
    assert model.layers[1].attention.v_proj.scale == 2.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": "q_proj"}, r"lora.targets: 'q_proj' is none of the model's layers, which are "
                                r"named as layers.0.attention.q_proj"),
        ({"targets": "all-linear"}, r"without lora.targets all of them are adapted"),  # PEFT's
        ({"rank_pattern": {"w1": 2}}, r"lora.rank_pattern: 'w1' matches none of the adapted"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_refused(fields: dict[str, Any], said: str) -> None:
    model = Transformer(TransformerConfig(vocab_size=61, hidden_size=32, num_layers=1, num_heads=4))
    with pytest.raises(UserError, match=said):
        apply_lora(model, LoRAConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": "q_proj("}, r"lora.targets: 'q_proj\(' is no regular expression"),
        ({"rank_pattern": {"(": 2}}, r"lora.rank_pattern: '\(' is no regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, r"lora.rank_pattern\['q_proj'\]: rank=0"),
        ({"alpha_pattern": {"q_proj": "2"}}, r"lora.alpha_pattern must be"),
        ({"train_modules": ["lm_head"]}, r"lora.train_modules: unknown lm_head; known are embed, "
                                         r"head, norms"),
        ({"lr_ratio": 0}, r"lora.lr_ratio=0: must be above 0"),
        ({"alpha": 0}, r"lora.alpha=0: must be above 0"),  # nothing would be learnt
    ],
)  # fmt: skip
def test_mistakes_in_the_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LoRAConfig(**fields)
