"""Weights of 4 and 8 bits: bitsandbytes' numbers, gradients, memory, and loading."""

from __future__ import annotations

import sys
from pathlib import Path

import bitsandbytes.functional
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_llm import LoRAConfig, Transformer, TransformerConfig, UserError
from lit_llm.models.hub.adapters import load_adapter, save_adapter
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels import quantized
from lit_llm.models.kernels.quantized import FORMATS, Format, Packed, pack, shapes, unpack
from lit_llm.models.lora import (
    QuantizedLoRALinear,
    apply_lora,
    lora_layers,
    merge_lora,
    merged_weights,
)
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.quantize import QuantizedLinear, quantize_on_meta, quantized_layers

SHAPE = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 64, "vocab_size": 96}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = Transformer(TransformerConfig(**SHAPE))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def layer(weight: torch.Tensor, format: Format, dtype: torch.dtype) -> QuantizedLinear:
    """A layer that holds ``weight``, as loading makes it."""
    made = QuantizedLinear.convert(
        nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"), format, dtype
    )
    packed = dict(zip(Packed._fields, pack(weight, format), strict=True))
    made.load_state_dict(packed, assign=True)
    return made


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 100).map(lambda half: 2 * half),
    st.sampled_from(["nf4", "fp4"]), st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 9),
)  # fmt: skip
def test_four_bits_are_those_of_bitsandbytes(
    rows: int, columns: int, format: Format, dtype: torch.dtype, seed: int
) -> None:
    """Rows that are no multiple of the block too, where its CPU kernel is wrong (0.50.2)."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    codes, state = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type=format
    )
    packed = pack(weight, format)
    assert torch.equal(packed.codes, codes.view(-1))
    assert torch.equal(packed.absmax, state.absmax)
    assert torch.equal(
        packed.scales.view(torch.float32), torch.cat([state.state2.absmax, state.offset.view(1)])
    )
    # What bitsandbytes documents: level times absmax, along the flattened matrix.
    absmax = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    pairs = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).flatten().long()
    theirs = state.code[pairs] * absmax.repeat_interleave(64)[: weight.numel()]
    torch.testing.assert_close(
        unpack(packed, format, rows, torch.float32),
        theirs.view(rows, columns),
        rtol=1e-5,
        atol=1e-7,
    )
    if columns % 64 == 0:
        direct = bitsandbytes.functional.dequantize_4bit(codes, state).to(torch.bfloat16)
        torch.testing.assert_close(unpack(packed, format, rows, torch.bfloat16), direct)


def test_packing_does_not_depend_on_threads_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(2048, 1536, generator=torch.Generator().manual_seed(0))  # 49,152 blocks
    threads, found = torch.get_num_threads(), []
    for number, chunk in ((1, 2**18), (3, 2**18), (2, 2**13)):
        monkeypatch.setattr(quantized, "_CHUNK", chunk)
        torch.set_num_threads(number)
        found.append(pack(weight, "nf4"))
        assert torch.get_num_threads() == number
    torch.set_num_threads(threads)
    for packed in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(packed, found[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    weight = torch.randn(9, 33).to(dtype)
    codes, absmax, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.float())
    packed = pack(weight, "int8")
    assert torch.equal(packed.codes, codes)
    assert torch.equal(packed.scales.view(torch.float32), absmax)
    theirs = torch.ops.bitsandbytes.int8_vectorwise_dequant(codes, absmax)
    torch.testing.assert_close(unpack(packed, "int8", 9, torch.float32), theirs)


@pytest.mark.parametrize("format", FORMATS)
def test_shapes_and_bytes(format: Format) -> None:
    for rows, columns in ((1, 2), (48, 96), (200, 130), (4, 4096)):
        expected, packed = shapes(rows, columns, format), pack(torch.randn(rows, columns), format)
        for one, other in zip(expected, packed, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
    half = 2 * 4 * 4096
    assert sum(t.nbytes for t in packed) <= (0.51 if format == "int8" else 0.27) * half


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: Format) -> None:
    zeros = torch.zeros(6, 64)
    assert torch.equal(unpack(pack(zeros, format), format, 6, torch.float32), zeros)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_unpacked_weight(
    format: Format, dtype: torch.dtype
) -> None:
    made = layer(torch.randn(48, 32), format, dtype)
    made.bias = nn.Parameter(torch.randn(48), requires_grad=False)
    x = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = made(x), F.linear(y, made.weight, made.bias.to(dtype))
    assert made.weight.dtype == ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    ours.backward(grad)
    theirs.backward(grad)
    torch.testing.assert_close(x.grad, y.grad)
    torch.library.opcheck(
        quantized.quantized_product,
        (x, made.codes, made.absmax, made.scales, made.bias.to(dtype), format, 48, 48, False),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_autocast_decides_the_dtype_of_the_product() -> None:
    made = layer(torch.randn(8, 64), "nf4", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(3, 64)).dtype == torch.bfloat16
    assert made(torch.randn(3, 64)).dtype == torch.float32


def test_moving_to_bfloat16_rounds_no_scale() -> None:
    made = layer(torch.randn(8, 64), "nf4", torch.float32)
    before = made.weight
    made.to(torch.bfloat16)
    assert torch.equal(made.weight, before.to(torch.bfloat16))
    assert all(not p.is_floating_point() for p in made.parameters())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_keeps_the_unpacked_weight_for_the_backward_pass(format: Format) -> None:
    made = layer(torch.randn(64, 128), format, torch.float32)
    kept: list[torch.Tensor] = []
    x = torch.randn(1, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(x).sum()
    assert {t.data_ptr() for t in kept if t.numel() > 1} <= {
        p.data_ptr() for p in made.parameters()
    }
    assert all(not t.is_floating_point() for t in kept)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_packs_the_layers_and_nothing_else(
    base: Path, format: Format, dtype: torch.dtype
) -> None:
    whole = Transformer.from_pretrained(base)
    model, its_digest = load_quantized(base, format, dtype)
    assert its_digest == digest(whole.state_dict().items())
    assert len(quantized_layers(model)) == 2 * 7
    for name, weight in merged_weights(model):
        assert weight.dtype == dtype
        original = whole.state_dict()[name]
        if name.startswith("layers.") and "norm" not in name:
            expected = unpack(pack(original, format), format, len(original), dtype)
            assert torch.equal(weight, expected) and not torch.equal(weight, original.to(dtype))
        else:
            assert torch.equal(weight, original.to(dtype))
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    Transformer(TransformerConfig(**SHAPE, tie_embeddings=True)).save_pretrained(tmp_path)
    model, its_digest = load_quantized(tmp_path, "nf4", torch.float32)
    assert model.head.weight is model.embed.weight
    assert its_digest == digest(Transformer.from_pretrained(tmp_path).state_dict().items())


def test_experts_and_routers_stay(tmp_path: Path) -> None:
    config = TransformerConfig(
        **SHAPE, num_experts=4, experts_per_token=2, expert_size=32, qk_norm="none"
    )
    whole = Transformer(config)
    whole.save_pretrained(tmp_path)
    model, its_digest = load_quantized(tmp_path, "nf4", torch.float32)
    assert its_digest == digest(whole.state_dict().items())
    assert len(quantized_layers(model)) == 2 * 4
    for name, weight in model.state_dict().items():
        if "experts" in name or "router" in name:
            assert torch.equal(weight, whole.state_dict()[name])


def test_updates_train_beside_it(base: Path) -> None:
    """As beside a plain base that holds the unpacked weights."""
    model, _ = load_quantized(base, "nf4", torch.float32)
    plain = Transformer.from_pretrained(base)
    plain.load_state_dict(dict(merged_weights(model)))
    ids = torch.randint(0, 96, (2, 33))
    losses = []
    for one in (model, plain):
        torch.manual_seed(0)
        apply_lora(one, LoRAConfig(rank=4))
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(4):
            loss = one.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5) and losses[3] < losses[0]
    assert all(isinstance(module, QuantizedLoRALinear) for module in lora_layers(model))
    for (name, ours), (same, theirs) in zip(
        merged_weights(model), merged_weights(plain), strict=True
    ):
        assert name == same
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recomputed_and_compiled_it_is_the_same(base: Path, compile: bool) -> None:
    gradients = []
    for prepared in (False, True):
        model, _ = load_quantized(base, "nf4", torch.float32)
        torch.manual_seed(0)
        apply_lora(model, LoRAConfig(rank=4))
        for module in lora_layers(model):
            nn.init.normal_(module.lora_b, std=0.1)
        if prepared:
            parallelize(model, activation_checkpointing=1.0, compile=compile)
        ids = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(1))
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_folding_in_makes_plain_layers(base: Path) -> None:
    model, _ = load_quantized(base, "nf4", torch.float32)
    apply_lora(model, LoRAConfig(rank=4, targets=("q_proj",)))
    for module in lora_layers(model):
        nn.init.normal_(module.lora_b, std=0.1)
    ids = torch.randint(0, 96, (1, 20))
    with torch.no_grad():
        before = model(ids)
        merge_lora(model)
        torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-5)
    assert not quantized_layers(model) and not lora_layers(model)
    assert type(model.layers[0].attention.q_proj) is nn.Linear
    assert set(model.state_dict()) == set(Transformer.from_pretrained(base).state_dict())


def test_an_adapter_goes_to_peft_and_back(base: Path, tmp_path: Path) -> None:
    model, _ = load_quantized(base, "nf4", torch.float32)
    apply_lora(model, LoRAConfig(rank=4))
    for module in lora_layers(model):
        nn.init.normal_(module.lora_b, std=0.1)
    save_adapter(model, tmp_path)
    again, _ = load_quantized(base, "nf4", torch.float32)
    load_adapter(again, tmp_path)
    ids = torch.randint(0, 96, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(again(ids), model(ids))


def test_an_odd_number_of_weights_is_told() -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**SHAPE))
        model.layers[0].mlp.up_proj = nn.Linear(3, 3, bias=False)
    with pytest.raises(UserError, match="up_proj is 3 x 3, an odd number of weights; take int8"):
        quantize_on_meta(model, "nf4", torch.float32)


def test_without_bitsandbytes_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    quantized._functional.cache_clear()
    with pytest.raises(UserError, match=r"need bitsandbytes: pip install 'lit_llm\[quant\]'"):
        pack(torch.randn(4, 64), "nf4")
    pack(torch.randn(4, 64), "int8")
    quantized._functional.cache_clear()
