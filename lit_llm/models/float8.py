"""Linear layers that train in 8-bit floating point: products at twice the rate, where the hardware
has them.

Each of a layer's three products, x W^T forward, g W and g^T x backward, reads operands of one byte:
x and W as e4m3 (3 bits of mantissa, up to 448), the gradient g as e5m2 (2 bits, up to 57,344), as
arXiv:2209.05433 has it. Before it is rounded every tensor is multiplied by a scale of its own,
``largest of the format / largest of the tensor``, computed anew each time ("dynamic, tensorwise"),
which the product is divided by again. Sums are float32, results of x's dtype, and weights stay what
they are.

Shapes: N tokens, I input features, O output features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.transformer import Transformer

SMALLEST = 1536
"""Harmonic mean of a layer's input and output features from which on it pays, see
`convert_to_float8`."""
_TILE = 16
"""What the kernels ask every dimension of a product to be a multiple of, but for the rows of the
first operand."""
_EPS = 2.0**-100
"""Keeps the scale of zeros finite. Added rather than a lower bound: it is lost in the rounding of
all that is above 1e-23, NaN passes on, and no minimum or maximum stands beside a transposed store
of bytes, which Triton then gets wrong (https://github.com/triton-lang/triton/issues/11111)."""
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Float8Linear(nn.Linear):
    """A linear layer with products in 8 bits while it trains; in evaluation the ``nn.Linear`` it
    was made of."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in autocast's dtype where that is on, else in
        the input's."""
        if not self.training:
            return F.linear(input, self.weight, self.bias)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        y_NO = _Float8Product.apply(input.reshape(-1, self.in_features), self.weight)
        y = y_NO.view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Float8Product(torch.autograd.Function):
    """x_NI @ weight_OI.T, of operators that a compiler sees: it casts the input of several layers
    once.

    The weight is kept as it is and cast again in the backward pass: that costs one more read of it,
        saves a byte a
    parameter, and lets a sharded model free the gathered weight in between.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        # Rounded to x's dtype first: a sharded model gathers weights in that dtype, and should come
        # to the same bytes.
        rounded_OI = weight_OI.to(x_NI.dtype)
        x_scale, weight_scale = scale_of(x_NI, _E4M3), scale_of(rounded_OI, _E4M3)
        x8_NI = to_float8(x_NI, x_scale, _E4M3)
        ctx.save_for_backward(x8_NI, x_scale, weight_OI, weight_scale)
        ctx.dtype = x_NI.dtype
        weight8_OI = to_float8(rounded_OI, weight_scale, _E4M3)
        return _multiply(x8_NI, x_scale, weight8_OI, weight_scale, ctx.dtype, fast=True)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_NO: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        x8_NI, x_scale, weight_OI, weight_scale = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_scale = scale_of(grad_NO, _E5M2)
        grad8_NO = to_float8(grad_NO, grad_scale, _E5M2)
        grad_x = grad_weight = None
        if needs_x:
            weight8_OI = to_float8(weight_OI.to(ctx.dtype), weight_scale, _E4M3)
            grad_x = _multiply(grad8_NO, grad_scale, weight8_OI.t(), weight_scale, ctx.dtype)
        if needs_weight:
            missing = -len(x8_NI) % _TILE
            x8_NI, grad8_NO = (
                F.pad(t, (0, 0, 0, missing)) if missing else t for t in (x8_NI, grad8_NO)
            )
            grad_weight = _multiply(grad8_NO.t(), grad_scale, x8_NI.t(), x_scale, ctx.dtype).to(
                weight_OI.dtype
            )
        return grad_x, grad_weight


def scale_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``x`` is multiplied by to fill the range of ``dtype``: a float32 scalar, which stays on
    x's device.

    Of a tensor with an infinity or NaN it is 0 or NaN, and all of a product with it is NaN: nothing
        hides a step that
    went wrong.
    """
    largest = torch.linalg.vector_norm(x, torch.inf).float()
    return torch.finfo(dtype).max / (largest + _EPS)


def to_float8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``x * scale`` rounded to ``dtype``. Needs no clamp: what exceeds the largest number does so
    by a rounding of x, less than half of the format's step there."""
    return (x.float() * scale).to(dtype)


def _multiply(
    a_MK: Tensor,
    a_scale: Tensor,
    b_NK: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    fast: bool = False,
) -> Tensor:
    """a @ b.T over the scales, (M, N). Kernels read both along K, so that there they are made
    contiguous, if need be.

    ``fast`` adds up with fewer bits on some GPUs: enough for the forward pass, not for gradients
    (as in torchao).
    """
    return torch._scaled_mm(
        a_MK.contiguous(), b_NK.contiguous().t(), scale_a=a_scale.reciprocal(),
        scale_b=b_scale.reciprocal(
            
        ),
        out_dtype=dtype, use_fast_accum=fast,
    )  # fmt: skip


def convert_to_float8(model: Transformer, smallest: int = SMALLEST) -> None:
    """Turn the linear layers of the blocks into `Float8Linear`, in place, where that pays; no name
    in a state dict changes. Embedding and head, routers and experts stay as they are.

    A layer's gain grows with tokens x in x out, and what it costs, reading and casting inputs and
    gradients, with tokens x (in + out): their ratio is the harmonic mean of in and out, whatever
    the batch. With two thirds of an H100's peaks (660 and 1,320 TFLOP/s), 2.5 TB/s and 7 bytes an
    element a layer breaks even at 1,230. What others measured there fits: models 768 wide (means of
    their layers: 768 and 1,229) lost, 1,664 wide (1,664 and 2,662) gained (nanochat's dev/LOG.md,
    2026-02-02); torchao's filter leaves layers up to 4,096 x 1,024 (1,638) alone.

    Args:
        smallest: harmonic mean of input and output features from which on a layer is turned.

    Raises:
        UserError: a model with LoRA, or none of whose layers is large enough with features in
            multiples of 16.
    """
    if model.lora is not None:
        raise UserError("model.float8: LoRA's layers have no products in 8 bits; set it to false")
    found = False
    for name, module in model.layers.named_modules():
        # Subclasses compute something else; a router decides by small differences.
        if type(module) is not nn.Linear or name.endswith("router"):
            continue
        i, o = module.in_features, module.out_features
        if i % _TILE == 0 and o % _TILE == 0 and 2 * i * o / (i + o) >= smallest:
            module.__class__ = Float8Linear
            found = True
    if not found:
        raise UserError(
            f"model.float8: no layer has features in multiples of {_TILE} with a harmonic mean of "
            f"{smallest} or more, "
            "and smaller ones are slower in 8 bits; set it to false"
        )
