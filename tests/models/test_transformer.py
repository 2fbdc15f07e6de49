"""The model and its directories; what each family computes is in test_families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.errors import UserError
from lit_llm.models import head
from lit_llm.models.accounting.flops import num_parameters
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub import huggingface
from lit_llm.models.hub.config_json import config_to_hf, family_of
from lit_llm.models.hub.families import FAMILIES
from lit_llm.models.kernels.loss import IGNORE
from lit_llm.models.masks import build_mask
from lit_llm.models.presets import PRESETS
from lit_llm.models.transformer import Transformer


@given(
    st.integers(1, 12), st.integers(0, 12), st.one_of(st.none(), st.integers(1, 14)),
    st.integers(0, 2**12 - 1)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_mask_is_the_definition(new: int, past: int, window: int | None, padding_bits: int) -> None:
    total = new + past
    padding = torch.tensor([[bool(padding_bits >> i & 1) for i in range(total)]])
    for pad in (None, padding):
        mask = build_mask(new, total, window, pad, torch.device("cpu"))
        if mask is None and new == 1:  # all keys that `Attention` has left
            assert pad is None
            continue
        if mask is None:  # SDPA's own causal mask, which only means this when nothing is cached
            assert past == 0 and pad is None
            mask = torch.ones(total, total, dtype=torch.bool).tril()
        mask = mask.expand(1, 1, new, total)
        for q in range(new):
            for k in range(total):
                at = past + q
                seen = k <= at and (window is None or k > at - window)
                if pad is not None:
                    seen = (seen and bool(padding[0, k])) or k == at
                assert bool(mask[0, 0, q, k]) == seen


def test_meta_construction_makes_no_data_and_leaves_nothing_on_meta() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig.from_preset("llama-3-8b"))
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248  # the published count
    assert all(t.is_meta for t in model.state_dict().values())
    with torch.device("meta"):
        small = Transformer(TransformerConfig(num_layers=1))
    small.to_empty(device="cpu").init_weights()
    assert not any(t.is_meta for t in [*small.parameters(), *small.buffers()])
    again = Transformer(TransformerConfig(num_layers=1))
    for model in (small, again):
        torch.manual_seed(1)
        model.init_weights()
    assert all(
        torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True)
    )


def test_first_loss_is_that_of_guessing() -> None:
    model = Transformer(TransformerConfig.from_preset("nano-5m"))
    ids = torch.randint(0, 4096, (2, 64))
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(8.318, abs=0.01)  # ln 4096


def test_without_a_gradient_the_logits_are_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=50, hidden_size=16, num_layers=1, num_heads=2))
    ids = torch.randint(0, 50, (3, 9))
    labels = ids.roll(-1, 1).masked_fill(ids == ids[0, 0], IGNORE)
    expected = model.token_losses(ids, labels)
    seen, logits = [], model.lm_head.logits
    monkeypatch.setattr(head, "chunk_bytes", lambda device: 4 * 50 * 5)
    monkeypatch.setattr(
        model.lm_head, "logits", lambda x: seen.append(x.shape[:-1].numel()) or logits(x)
    )
    with torch.no_grad():
        torch.testing.assert_close(model.token_losses(ids, labels), expected)
    assert max(seen) == 5 and sum(seen) == 27


@pytest.mark.parametrize(
    ("preset", "published"),
    [("gpt2", 124_439_808), ("gemma-3-1b", 999_885_952), ("mixtral-8x7b", 46_702_792_704),
     ("qwen3-30b-a3b", 30_532_122_624), ("llama-3.2-1b", 1_235_814_400),
     ("smollm2-135m", 134_515_008)],
)  # fmt: skip
def test_parameters_are_as_published(preset: str, published: int) -> None:
    assert num_parameters(TransformerConfig.from_preset(preset)) == published


@pytest.mark.parametrize("preset", [name for name in PRESETS if not name.startswith("fast-")])
def test_every_preset_is_a_hugging_face_family(preset: str) -> None:
    config = TransformerConfig.from_preset(preset)
    hf = config_to_hf(config, torch.bfloat16)
    assert hf["model_type"] in FAMILIES
    with torch.device("meta"):
        ours = Transformer(config)
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf)
        )
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()


def test_a_shape_of_no_family_is_kept_in_our_own_format(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=50, hidden_size=32, num_layers=1, num_heads=2, norm="layernorm", mlp="relu2"
    )
    assert family_of(config) is None
    model = Transformer(config)
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == config
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_shards_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "MAX_SHARD_BYTES", 40_000)
    model = Transformer(
        TransformerConfig(vocab_size=97, hidden_size=48, num_layers=2, mlp="swiglu")
    )
    model.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, Transformer.from_pretrained(tmp_path)(ids), atol=1e-4, rtol=0
        )


def _saved(folder: Path) -> Path:
    Transformer(
        TransformerConfig(vocab_size=50, hidden_size=32, num_layers=1, num_heads=2)
    ).save_pretrained(folder)
    return folder


def test_broken_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file or folder; a model is a Hugging Face"):
        Transformer.from_pretrained(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: a file of no known kind; a model is a Hugging Face"):
        TransformerConfig.from_pretrained(tmp_path / "file")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapter: is an adapter, not a model; give the model"):
        TransformerConfig.from_pretrained(tmp_path / "adapter")
    _saved(tmp_path / "run" / "final")
    with pytest.raises(UserError, match=r"run: is a run; its model is .*run/final"):
        TransformerConfig.from_pretrained(tmp_path / "run")
    folder = _saved(tmp_path / "truncated")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole"):
        Transformer.from_pretrained(folder)
    folder = _saved(tmp_path / "layers")
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    )
    with pytest.raises(UserError, match=r"tensors missing: model\.layers\.1"):
        Transformer.from_pretrained(folder)
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
                      .replace('"hidden_size": 32', '"hidden_size": 64'))  # fmt: skip
    with pytest.raises(UserError, match="has shape"):
        Transformer.from_pretrained(folder)
    config.write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="model_type 'mamba' is not known"):
        Transformer.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        Transformer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hiden_size": 3}, "unknown key transformer.hiden_size: did you mean hidden_size"),
        ({"preset": "nano"}, "no model preset named 'nano': did you mean nano-5m"),
        ({"hidden_size": 100, "num_heads": 3}, "not a multiple of num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"num_layers": 0}, "num_layers=0: must be from 1 to"),
        ({"num_layers": "two"}, "transformer.num_layers must be a whole number"),
        ({"mlp": "relu"}, "transformer.mlp is one of swiglu"),
        ({"head_dim": 7}, "must be even"),
        ({"sliding_layers": [9], "sliding_window": 4}, "names layer 9"),
        ({"rotary_fraction": 0.3}, "must be an even number"),
        ({"rope_scaling": 2.0}, "transformer.rope_scaling must be a mapping"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "one of linear, dynamic, llama3, yarn; got 'ntk'"),
        ({"num_experts": 2, "experts_per_token": 3}, "must be 1 to num_experts=2"),
        ({"num_experts": 2, "mlp": "gelu"}, "experts have gated MLPs"),
        ({"pre_norm": False}, "needs pre_norm or post_norm"),
        ({"residual": "parallel", "post_norm": True}, "needs pre_norm without post_norm"),
        ({"rope_theta": "high"}, "transformer.rope_theta must be a number"),
    ],
)
def test_config_mistakes_are_named(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformerConfig.from_dict(fields)


def test_yaml_numbers_are_taken() -> None:
    assert TransformerConfig.from_dict({"rope_theta": "1e6", "norm_eps": 1}).rope_theta == 1e6
