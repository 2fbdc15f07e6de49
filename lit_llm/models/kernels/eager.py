"""Operations with their own backward pass, for uncompiled models.

They make fewer passes over memory, keep less for the backward pass, and use oneDNN's matrix
products on a CPU. A compiler fuses the plain formulas even better, so callers use these while it
traces. Compiled graphs get oneDNN's products through `traced_product`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Nothing:
    """Stands for an autograd context; nothing is kept."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep nothing."""


def call(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``; without autograd's books, a third of the time of a small one,
    where no gradient is asked for."""
    if torch.is_grad_enabled():
        return function.apply(*args)
    return function.forward(_Nothing(), *args)


class Rotation(torch.autograd.Function):
    """`lit_llm.models.rope.apply_rope` with a backward pass.

    The backward pass rotates the gradient back by the same angles. Only the angles are kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = cos.shape[-1]
    y = torch.empty_like(x)
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    torch.mul(x1, cos, out=y[..., :half]).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=y[..., half : 2 * half]).addcmul_(x1, sin, value=sign)
    if 2 * half < x.shape[-1]:
        y[..., 2 * half :] = x[..., 2 * half :]
    return y


class RMSNormalize(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension of ``x``.

    Of the activations only ``x`` and the inverse norm of each row are kept. In half precision both
    passes compute in float32. The normalised x is rounded to x's dtype before the product with
    ``weight``, as in transformers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = _at_least_float32(x)
        inverse = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        ctx.save_for_backward(x, weight, inverse)
        y = (wide * inverse).to(x.dtype)
        return y if weight is None else y.mul_(weight.to(y.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # With y = x * inverse and g the gradient by y, the gradient by x is
        # inverse * (g - y * mean(g * y)).
        x, weight, inverse = ctx.saved_tensors
        y, grad = x * inverse, _at_least_float32(grad)
        product = grad * y
        grad_weight = None
        if weight is not None:
            # Both are in x's dtype, the dtype of the forward product. The result is then the same
            # for a gain held in float32 and for one gathered in x's dtype.
            if ctx.needs_input_grad[1]:
                grad_weight = product.flatten(0, -2).sum(0).to(x.dtype).to(weight.dtype)
            gain = _at_least_float32(weight.to(x.dtype))
            grad = grad * gain
            share = product @ gain  # each row's sum of (gradient with respect to y) * y
        else:
            share = product.sum(-1)
        grad_x = torch.addcmul(
            grad, y, share.unsqueeze(-1), value=-1 / x.shape[-1], out=product
        ).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GatedSiLU(torch.autograd.Function):
    """silu(gate) * up. Only ``gate`` and ``up`` are kept; results overwrite unused tensors."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return _gated_silu_backward(grad, gate, up, F.silu(gate))


class GatedSiLULinear(torch.autograd.Function):
    """``F.linear(silu(gate) * up, weight, bias)`` in gate's dtype.

    The input of the linear layer is not kept; the backward pass computes it again.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        bias = None if bias is None else bias.to(gate.dtype)
        return product(F.silu(gate).mul_(up), weight.to(gate.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up, weight = ctx.saved_tensors
        rows, silu = grad.flatten(0, -2), F.silu(gate)
        by_weight = (
            (rows.t() @ (silu * up).flatten(0, -2)).to(weight.dtype)
            if ctx.needs_input_grad[2]
            else None
        )
        by_bias = rows.sum(0).to(weight.dtype) if ctx.needs_input_grad[3] else None
        by_hidden = product(grad, weight.to(grad.dtype).t())
        return *_gated_silu_backward(by_hidden, gate, up, silu), by_weight, by_bias


def _gated_silu_backward(
    grad: Tensor, gate: Tensor, up: Tensor, silu: Tensor
) -> tuple[Tensor, Tensor]:
    grad_up, grad_gate = silu.mul_(grad), grad * up
    return torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate), grad_up


class OneDNNLinear(nn.Linear):
    """A linear layer that uses oneDNN for its float32 products on a CPU.

    torch sends float32 products to MKL, which is 5 to 10% slower on AMD's processors. Only the
    weight's gradient stays with MKL: both operands of this product are transposed, and there MKL is
    faster (docs/decisions.md, "A training step on a CPU").
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not self.takes(input):
            return F.linear(input, self.weight, self.bias)
        if torch.compiler.is_compiling():
            return traced_product(input, self.weight, self.bias)
        return OneDNNProducts.apply(input, self.weight, self.bias)[0]

    def takes(self, input: Tensor) -> bool:
        """Whether the products of this input use oneDNN."""
        cpu = input.device.type == "cpu"  # a model loaded on the CPU may move to a GPU later
        return (
            cpu
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )


class OneDNNProducts(torch.autograd.Function):
    """``F.linear`` of one input with each of several weights.

    The gradients with respect to the input are added up inside the products. The arguments after
    ``x`` are the weight and bias (or None) of each layer in turn. Returns a tuple.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
        weights, biases = layers[::2], layers[1::2]
        ctx.save_for_backward(x, *weights)
        return tuple(product(x, *layer) for layer in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        rows_x = x.reshape(-1, x.shape[-1])
        grad_x: Tensor | None = None
        by_layers: list[Tensor | None] = []
        for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            rows = grad.reshape(-1, grad.shape[-1])
            if ctx.needs_input_grad[0]:
                grad_x = product(grad, weight.t(), add=grad_x)
            by_layers.append(rows.t() @ rows_x if ctx.needs_input_grad[2 * i + 1] else None)
            by_layers.append(rows.sum(0) if ctx.needs_input_grad[2 * i + 2] else None)
        return grad_x, *by_layers


# A custom operator for compiled graphs. The compiler's own lowering of oneDNN takes constant
# weights only, and `OneDNNProducts` would split the graph.
@torch.library.custom_op(
    "lit_llm::onednn_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
def traced_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with oneDNN's products inside a compiled graph.

    Graphs use it where uncompiled code uses `OneDNNProducts`.
    """
    return product(x, weight, bias)


@traced_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _traced_product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    by_x, by_weight, by_bias = ctx.needs_input_grad
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        traced_product(grad, weight.t(), None) if by_x else None,
        rows.t() @ x.reshape(-1, x.shape[-1]) if by_weight else None,
        rows.sum(0) if by_bias else None,
    )


traced_product.register_autograd(_traced_product_backward, setup_context=_keep_operands)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, add: Tensor | None = None
) -> Tensor:
    """``F.linear`` without a gradient, plus ``add``; by oneDNN if x is float32 on a CPU."""
    if (
        x.dtype != torch.float32
        or x.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
    ):
        y = F.linear(x, weight, bias)
        return y if add is None else y.add_(add)
    if add is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")


def use_onednn(model: nn.Module) -> None:
    """Turn plain float32 ``nn.Linear`` layers on a CPU into `OneDNNLinear`, in place."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if (
            type(module) is nn.Linear
            and module.weight.device.type == "cpu"
            and module.weight.dtype == torch.float32
        ):
            module.__class__ = OneDNNLinear
