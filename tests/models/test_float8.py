"""Products in 8 bits against their definition written out, and as parts of a model."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_llm import LoRAConfig, PretrainDataModule, PretrainModule, SFTModule, UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.float8 import Float8Linear, convert_to_float8
from lit_llm.models.kernels.device import can_compile, has_float8
from lit_llm.models.lora import apply_lora
from lit_llm.models.meta import meta_transformer
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.transformer import Transformer
from lit_llm.training import prepare

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 32}
FEATURES = st.integers(1, 5).map(lambda n: 16 * n)


def linear(i: int, o: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(i, o, bias=bias)
    layer.__class__ = Float8Linear
    return layer


def through(layer: nn.Module, x: Tensor, grad: Tensor, autocast: bool = False) -> list[Tensor]:
    """Output, the input's gradient and the parameters', where ``grad`` is the output's."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(grad.to(y.dtype).view_as(y))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of float32 ``x`` in ``dtype`` with a scale of its own."""
    scale = torch.finfo(dtype).max / x.abs().max().clamp(min=1e-30)
    return (x * scale).to(dtype).float() / scale


@given(rows=st.integers(1, 40), i=FEATURES, o=FEATURES, bias=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_products_are_those_of_rounded_operands(
    rows: int, i: int, o: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer, x, grad = linear(i, o, bias), torch.randn(rows, i), torch.randn(rows, o)
    x8, weight8, grad8 = rounded(x, E4M3), rounded(layer.weight.detach(), E4M3), rounded(grad, E5M2)
    expected = [x8 @ weight8.T, grad8 @ weight8, grad8.T @ x8]
    if bias:
        expected[0] += layer.bias.detach()
        expected.append(grad.sum(0))
    got = through(layer, x, grad)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # Under autocast operands are rounded to bfloat16 before, the product after.
    got = through(layer, x, grad, autocast=True)
    x8, weight8, grad8 = (
        rounded(t.detach().bfloat16().float(), dtype)
        for t, dtype in ((x, E4M3), (layer.weight, E4M3), (grad, E5M2))
    )
    assert [t.dtype for t in got[:3]] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(got[1:3], (grad8 @ weight8, grad8.T @ x8), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-8, atol=1e-5)


@given(
    rows=st.integers(1, 40), i=FEATURES, o=FEATURES, seed=st.integers(0, 99),
    exponents=st.tuples(*[st.integers(-40, 40)] * 3),
    zero=st.sampled_from(["nothing", "x", "weight", "grad"]), outlier=st.sampled_from([1.0, 1e4]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_error_is_that_of_two_roundings(
    rows: int, i: int, o: int, seed: int, exponents: tuple[int, ...], zero: str, outlier: float
) -> None:
    """Each element of a product is off by no more than the operands' roundings, 1/16 (e4m3) or 1/8
    (e5m2) of theirs, and of numbers so small beside the largest that they have fewer bits, half the
    smallest step; at any magnitude."""
    torch.manual_seed(seed)
    layer = linear(i, o)
    values = {"x": torch.randn(rows, i), "weight": torch.randn(o, i), "grad": torch.randn(rows, o)}
    for (name, value), exponent in zip(values.items(), exponents, strict=True):
        value[0, 0] *= outlier
        value *= 0.0 if name == zero else 2.0**exponent
    x, weight, grad = values.values()
    layer.weight.data = weight

    def off(t: Tensor, half_step: float, smallest: float, dtype: torch.dtype) -> Tensor:
        return half_step * t.abs() + smallest / 2 * t.abs().max() / torch.finfo(dtype).max

    dx, dweight, dgrad = (
        off(x, 1 / 16, 2**-9, E4M3),
        off(weight, 1 / 16, 2**-9, E4M3),
        off(grad, 1 / 8, 2**-16, E5M2),
    )
    for got, a, da, b, db in zip(
        through(layer, x, grad), (x, grad, grad.T), (dx, dgrad, dgrad.T), (weight.T, weight, x),
        (dweight.T, dweight, dx), strict=True,
    ):  # fmt: skip
        bound = da @ b.abs() + a.abs() @ db + da @ db
        assert ((got - a @ b).abs() <= bound * 1.0001 + 1e-6 * (a.abs() @ b.abs())).all()
        assert got.isfinite().all()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """Or SpikeGuard would not see it: in every element of what is made of it."""
    torch.manual_seed(0)
    layer, x, grad = linear(32, 48), torch.randn(5, 32), torch.randn(5, 48)
    spoilt = x.clone()
    spoilt[2, 3] = bad
    y, _, grad_weight = through(layer, spoilt, grad)
    assert y.isnan().all() and grad_weight.isnan().all()
    grad[1, 7] = bad
    _, grad_x, grad_weight = through(layer, x, grad)
    assert grad_x.isnan().all() and grad_weight.isnan().all()


def test_batches_of_any_shape_and_frozen_parts() -> None:
    torch.manual_seed(0)
    layer, x, grad = linear(32, 48, bias=True), torch.randn(2, 3, 5, 32), torch.randn(2, 3, 5, 48)
    flat = through(layer, x.flatten(0, 2), grad)
    for a, b in zip(through(layer, x, grad), flat, strict=True):
        assert torch.equal(a.flatten(), b.flatten())
    layer.weight.requires_grad_(False)
    assert [t.shape for t in through(layer, x, grad)] == [grad.shape, x.shape, (48,)]
    layer.weight.requires_grad_(True)
    layer(x).backward(grad)  # the input needs no gradient
    torch.testing.assert_close(layer.weight.grad, flat[2])


def test_evaluation_is_the_plain_layers() -> None:
    layer = linear(32, 48, bias=True).eval()
    x = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_it_is_the_same() -> None:
    """On operands that bfloat16 holds: a compiler leaves out the rounding to it between two
    operators."""
    torch.manual_seed(0)
    layer = linear(32, 48, bias=True)
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    x, grad = (torch.randn(21, n).bfloat16() for n in (32, 48))
    torch.testing.assert_close(
        through(compiled, x, grad), through(layer, x, grad), rtol=1e-6, atol=1e-6
    )
    x[0, 0] = torch.nan
    assert through(compiled, x, grad)[0].isnan().all()


def model(**fields: object) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(**{**SHAPE, **fields}))
    for parameter in made.parameters():  # as built a block adds nothing
        nn.init.normal_(parameter, std=0.1)
    return made


def loss_and_gradients(net: Transformer) -> list[Tensor]:
    ids = torch.arange(40).view(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.loss(ids, ids)
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def test_a_block_is_one_graph() -> None:
    plain = model(num_experts=4, experts_per_token=2, expert_size=16, dense_layers=[1])
    convert_to_float8(plain, smallest=16)
    traced = copy.deepcopy(plain)
    traced.layers[0].compile(backend="aot_eager", fullgraph=True, dynamic=False)
    got, expected = loss_and_gradients(traced), loss_and_gradients(plain)
    # Norms traced round otherwise, and what was near the border of two 8-bit numbers may be the
    # other one then.
    assert got[0].item() == pytest.approx(expected[0].item(), rel=1e-3)
    assert all((a - b).norm() <= 0.1 * b.norm() for a, b in zip(got, expected, strict=True))


def test_recomputed_blocks_are_the_same() -> None:
    plain = model()
    convert_to_float8(plain, smallest=16)
    again = copy.deepcopy(plain)
    parallelize(again, activation_checkpointing=1.0)
    torch.testing.assert_close(loss_and_gradients(again), loss_and_gradients(plain), rtol=0, atol=0)


def test_names_and_files_stay(tmp_path: Path) -> None:
    net = model(attention_bias=True)
    before = copy.deepcopy(net.state_dict())
    net.save_pretrained(tmp_path / "before")
    convert_to_float8(net, smallest=16)
    net.save_pretrained(tmp_path / "after")
    assert list(net.state_dict()) == list(before)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


def turned(net: Transformer) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, Float8Linear)}


def test_which_layers_are_turned() -> None:
    net = model(
        num_experts=16, experts_per_token=2, expert_size=16, dense_layers=[1], intermediate_size=40
    )
    convert_to_float8(net, smallest=16)  # 40 is no multiple of 16
    assert turned(net) == {f"layers.{i}.attention.{name}_proj" for i in (0, 1) for name in "qkvo"}
    wide = {
        "hidden_size": 2048,
        "num_heads": 16,
        "num_kv_heads": 4,
        "intermediate_size": 5632,
        "num_layers": 1,
    }
    net = meta_transformer(TransformerConfig(**{**SHAPE, **wide}))
    parallelize(net, float8=True)  # 2,048 x 512 is too small
    assert turned(net) == {
        f"layers.0.{name}_proj"
        for name in ("attention.q", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
    }


def test_which_devices_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_float8(torch.device("cpu")) and not has_float8(torch.device("mps"))
    for capability, expected in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert has_float8(torch.device("cuda")) == expected


def test_what_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.float8: no layer has features in multiples of 16 with a .* of 1536",
    ):
        parallelize(model(), float8=True)
    net = model()
    apply_lora(net, LoRAConfig(rank=2))
    with pytest.raises(UserError, match=r"model\.float8: LoRA's layers"):
        parallelize(net, float8=True)
    with pytest.raises(UserError, match=r"model\.float8: LoRA's layers"):
        SFTModule("somewhere", lora=LoRAConfig(rank=2), float8=True)


@pytest.mark.slow
def test_it_learns_what_bfloat16_learns() -> None:
    """40 steps of AdamW on text that counts: every loss is within 1% of bfloat16's, down to a tenth
    of the first."""
    curves = []
    for float8 in (False, True):
        net = model()
        if float8:
            convert_to_float8(net, smallest=16)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        torch.manual_seed(1)
        curves.append([])
        for _ in range(40):
            ids = (torch.randint(0, 61, (8, 1)) + torch.arange(33)) % 61
            with torch.autocast("cpu", torch.bfloat16):
                loss = net.loss(ids[:, :-1], ids[:, 1:]) / (8 * 32)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curves[-1].append(loss.item())
    assert curves[1] == pytest.approx(curves[0], rel=0.01)
    assert curves[1] != curves[0] and curves[1][-1] < 0.1 * curves[1][0]


def fit(corpus: Path, folder: Path, module: L.LightningModule, **kwargs: object) -> L.Trainer:
    data = PretrainDataModule(
        corpus=str(corpus),
        seq_len=32,
        micro_batch_size=2,
        global_batch_tokens=64,
        tokens=64 * 3,
        validate_every=0,
    )
    trainer = L.Trainer(
        **{"accelerator": "cpu", "precision": "bf16-mixed", "max_epochs": 1, "logger": False,
           "enable_checkpointing": False, "enable_model_summary": False,
           "enable_progress_bar": False, "default_root_dir": folder, **kwargs}
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}


def test_a_module_trains_in_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lit_llm.models.parallel.parallelize.convert_to_float8",
        partial(convert_to_float8, smallest=16),
    )
    module = PretrainModule(TINY, float8=True, compile=False)
    with pytest.warns(UserWarning, match=r"model\.float8 without model\.compile is slower"):
        assert fit(corpus, tmp_path, module).global_step == 3
    assert isinstance(module.network, Transformer) and len(turned(module.network)) == 7


def test_a_module_says_what_is_missing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(PretrainModule):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Embedding(512, 32), nn.Linear(32, 512))

    for module, precision, said in (
        (
            PretrainModule(TINY, float8=True),
            "32-true",
            r"model\.float8 needs .*precision=bf16-mixed, not 32-true",
        ),
        (
            Other(TINY, float8=True),
            "bf16-mixed",
            r"model\.float8: a Sequential has no blocks to turn",
        ),
        (
            PretrainModule(TINY, float8=True, compile=False),
            "bf16-mixed",
            r"model\.float8: no layer",
        ),
    ):
        with pytest.raises(UserError, match=said):
            fit(corpus, tmp_path, module, precision=precision)
    monkeypatch.setattr(prepare, "has_float8", lambda device: False)
    with pytest.raises(
        UserError, match=r"model\.float8: this device has no products of 8-bit floats"
    ):
        fit(corpus, tmp_path, PretrainModule(TINY, float8=True))
    alone = PretrainModule(TINY, float8=True)  # in evaluation any device and precision will do
    alone.configure_model()
    assert isinstance(alone.network, Transformer) and not turned(alone.network)
