"""Operations with a backward of their own against the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.eager import (
    GatedSiLU,
    GatedSiLULinear,
    OneDNNLinear,
    RMSNormalize,
    Rotation,
    call,
    traced_product,
    use_onednn,
)
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.rope import apply_rope, for_each_channel
from lit_llm.models.transformer import Transformer


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rotary", [4, 8])
def test_rotation(rotary: int) -> None:
    x = doubles(2, 3, 5, 8).transpose(1, 2)  # as heads are: not contiguous
    cos, sin = torch.randn(2, 3, rotary // 2, dtype=torch.float64)
    x1, x2, rest = x.split([rotary // 2, rotary // 2, 8 - rotary], dim=-1)
    expected = torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), -1)
    torch.testing.assert_close(Rotation.apply(x, cos, sin), expected)
    assert gradcheck(lambda t: Rotation.apply(t, cos, sin), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_angles_of_each_channel_rotate_to_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 8).to(dtype).transpose(1, 2)
    angles = [part.to(dtype) for part in torch.randn(2, 2, 1, 5, 4)]
    assert torch.equal(apply_rope(x, *for_each_channel(*angles)), apply_rope(x, *angles))


def test_without_gradients_nothing_else_is_computed() -> None:
    x, gain = torch.randn(2, 3, 8), torch.randn(8)
    expected = call(RMSNormalize, x, gain.requires_grad_(), 1e-5)
    assert expected.requires_grad
    with torch.no_grad():
        found = call(RMSNormalize, x, gain, 1e-5)
    assert torch.equal(found, expected) and not found.requires_grad


@pytest.mark.parametrize("gain", [True, False])
def test_rms_normalize(gain: bool) -> None:
    x, weight = doubles(2, 3, 8), doubles(8) if gain else None
    expected = F.rms_norm(x, (8,), weight, eps=1e-5)
    torch.testing.assert_close(RMSNormalize.apply(x, weight, 1e-5), expected)
    assert gradcheck(lambda *inputs: RMSNormalize.apply(*inputs, *([] if gain else [None]), 1e-5),
                     (x, weight) if gain else (x,))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_normalize_in_half_precision(dtype: torch.dtype) -> None:
    """Rounded where transformers rounds; gradients are those of float64 but for the rounding of x's
    dtype."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 4, 33, 64).to(dtype)
    weight = torch.randn(64, requires_grad=True)
    x.requires_grad_()
    y = RMSNormalize.apply(x, weight, 1e-5)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        y, F.rms_norm(x, (64,), eps=1e-5) * weight.to(dtype), rtol=rounding, atol=0
    )
    y.backward(grad)
    exact_x = x.detach().double().requires_grad_()
    exact_weight = weight.detach().to(dtype).double().requires_grad_()
    F.rms_norm(exact_x, (64,), exact_weight, 1e-5).backward(grad.double())
    assert x.grad is not None and x.grad.dtype == dtype and weight.grad is not None
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=rounding, atol=rounding / 8)
    torch.testing.assert_close(
        weight.grad.double(), exact_weight.grad, rtol=rounding, atol=rounding / 8
    )


def test_gated_silu() -> None:
    gate, up = doubles(2, 3, 8), doubles(2, 3, 8)
    torch.testing.assert_close(GatedSiLU.apply(gate, up), F.silu(gate) * up)
    assert gradcheck(GatedSiLU.apply, (gate, up))


@pytest.mark.parametrize("bias", [True, False])
def test_gated_silu_and_the_layer_behind_it(bias: bool) -> None:
    gate, up, weight = doubles(2, 3, 8), doubles(2, 3, 8), doubles(5, 8)
    layer = (weight, doubles(5) if bias else None)
    torch.testing.assert_close(
        GatedSiLULinear.apply(gate, up, *layer), F.linear(F.silu(gate) * up, *layer)
    )
    assert gradcheck(lambda *inputs: GatedSiLULinear.apply(
                         *inputs[:3], inputs[3] if bias else None
                     ), (gate, up, *layer[: 1 + bias]))  # fmt: skip


def test_in_half_precision_the_gradient_of_the_layer_is_its_own() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=2))
    ids = torch.randint(0, 64, (2, 17))
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, ids)
        parallelize(model)
        got = gradients(model, ids)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, e, atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_onednn_products_are_a_linear_layers(bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(32, 48, bias=bias), torch.randn(2, 5, 32)
    outcomes = []
    for prepare in (lambda: None, lambda: use_onednn(linear)):
        prepare()
        inputs = x.clone().requires_grad_()
        y = linear(inputs)
        linear.zero_grad()
        y.square().sum().backward()
        outcomes.append([y, inputs.grad, *(p.grad.clone() for p in linear.parameters())])
    assert type(linear) is OneDNNLinear
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
def test_compiled_layers_have_onednns_products_too(bias: bool) -> None:
    layer, x = nn.Linear(32, 48, bias=bias), torch.randn(2, 5, 32, requires_grad=True)
    torch.library.opcheck(traced_product, (x, layer.weight, layer.bias))
    operators = set()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    use_onednn(layer)
    torch.compile(layer, backend=backend)(x)
    assert any("onednn_linear" in operator for operator in operators)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_compiled_layers_products(bias: bool) -> None:
    inputs = (doubles(2, 3, 8), doubles(5, 8), doubles(5) if bias else None)
    assert gradcheck(traced_product, inputs)


@pytest.mark.slow
def test_a_compiled_model_learns_what_an_eager_one_does() -> None:
    """20 steps of AdamW: the largest relative difference of a loss is float32's rounding."""
    config = TransformerConfig(
        vocab_size=300, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2
    )
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Transformer(config)
        parallelize(model, compile=compiled)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        losses.append([])
        for _ in range(20):
            ids = torch.randint(0, 300, (2, 33))
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("activation_checkpointing", [0.0, 0.5, 1.0])
def test_recomputed_blocks_are_compiled_too(activation_checkpointing: float) -> None:
    """Two graphs: the blocks', recomputed or not, and the head's."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=64, hidden_size=32, num_layers=4, num_heads=2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    ids = torch.randint(0, 64, (2, 17))
    expected = gradients(model, ids)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parallelize(model, compile=True, activation_checkpointing=activation_checkpointing)
    for got, plain in zip(gradients(model, ids), expected, strict=True):
        torch.testing.assert_close(got, plain, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_compiled_block_keeps_no_hidden_activations() -> None:
    """On a CPU: of what has the MLP's width, gate and up alone."""
    config = TransformerConfig(
        vocab_size=64, hidden_size=64, num_layers=1, num_heads=2, intermediate_size=96
    )
    model = Transformer(config)
    parallelize(model, compile=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*torch.randint(0, 64, (2, 1, 256)))
    assert sum(t.numel() == 96 * 256 for t in saved_by_graphs(loss)) == 2


def saved_by_graphs(loss: torch.Tensor) -> list[torch.Tensor]:
    todo, seen, saved = [loss.grad_fn], set(), []
    while todo:
        if (node := todo.pop()) is None or node in seen:
            continue
        seen.add(node)
        if "Compiled" in node.name():
            saved += node.saved_tensors
        todo += [parent for parent, _ in node.next_functions]
    return saved


def gradients(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    return [p.grad.clone() for p in model.parameters()]
