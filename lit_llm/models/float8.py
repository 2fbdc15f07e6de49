"""Linear layers that train in 8-bit floating point, with products at up to twice the rate.

A layer computes three products: x W^T in the forward pass, g W and g^T x in the backward pass.
Their operands are single bytes: x and W as e4m3 (3 bits of mantissa, up to 448), the gradient g as
e5m2 (2 bits, up to 57,344), as in arXiv:2209.05433. Before rounding, every tensor is multiplied by
its own scale, ``largest of the format / largest of the tensor``, which is computed anew each time
("dynamic, tensorwise"). The product is divided by the scales again. Sums are float32, results have
x's dtype, and the weights keep their dtype.

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
"""Harmonic mean of a layer's input and output features from which 8 bits pay off.

See `convert_to_float8`.
"""
_TILE = 16
"""Every dimension of a product must be a multiple of this number for the kernels.

The rows of the first operand are the exception.
"""
_EPS = 2.0**-100
"""Keeps the scale of an all-zero tensor finite.

The constant is added instead of used as a lower bound, for three reasons. It is lost in rounding
for every value above 1e-23. NaN passes through. And no minimum or maximum stands next to a
transposed store of bytes, which Triton compiles wrongly
(https://github.com/triton-lang/triton/issues/11111).
"""
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Float8Linear(nn.Linear):
    """A linear layer with 8-bit products in training; in evaluation a plain ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features).

        The output has autocast's dtype if autocast is on, else the input's dtype.
        """
        if not self.training:
            return F.linear(input, self.weight, self.bias)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        y_NO = _Float8Product.apply(input.reshape(-1, self.in_features), self.weight)
        y = y_NO.view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Float8Product(torch.autograd.Function):
    """x_NI @ weight_OI.T, built from operators that a compiler can see.

    A compiler then casts the common input of several layers once. The full-precision weight is
    saved and cast again in the backward pass. This costs one more read of the weight, saves a byte
    per parameter, and lets a sharded model free the gathered weight in between.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        # The weight is rounded to x's dtype first. A sharded model gathers weights in that dtype,
        # and both should give the same bytes.
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
    """Return the factor that makes ``x`` fill the range of ``dtype``.

    The result is a float32 scalar on x's device. For a tensor with an infinity or NaN the scale is
    0 or NaN, and the whole product becomes NaN. A failed step therefore stays visible.
    """
    largest = torch.linalg.vector_norm(x, torch.inf).float()
    return torch.finfo(dtype).max / (largest + _EPS)


def to_float8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round ``x * scale`` to ``dtype``.

    No clamp is needed. A value exceeds the largest number of the format only by a rounding error of
    x, which is less than half of the format's step there.
    """
    return (x.float() * scale).to(dtype)


def _multiply(
    a_MK: Tensor,
    a_scale: Tensor,
    b_NK: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    fast: bool = False,
) -> Tensor:
    """Return a @ b.T divided by the scales: (M, N).

    The kernels read both operands along K, so the operands are made contiguous along K if
    necessary. ``fast`` accumulates with fewer bits on some GPUs: enough for the forward pass, not
    for gradients (as in torchao).
    """
    return torch._scaled_mm(
        a_MK.contiguous(),
        b_NK.contiguous().t(),
        scale_a=a_scale.reciprocal(),
        scale_b=b_scale.reciprocal(),
        out_dtype=dtype,
        use_fast_accum=fast,
    )


def convert_to_float8(model: Transformer, smallest: int = SMALLEST) -> None:
    """Turn large linear layers of the blocks into `Float8Linear`, in place.

    No name in a state dict changes. Embedding, head, routers and experts stay as they are.

    A layer's gain grows with tokens x in x out. Its cost, reading and casting inputs and gradients,
    grows with tokens x (in + out). Their ratio is the harmonic mean of in and out, for every batch
    size. With two thirds of an H100's peaks (660 and 1,320 TFLOP/s), 2.5 TB/s and 7 bytes per
    element, a layer breaks even at 1,230. Published measurements on that GPU agree: models 768 wide
    (means of their layers: 768 and 1,229) lost, models 1,664 wide (1,664 and 2,662) gained
    (nanochat's dev/LOG.md, 2026-02-02). torchao's filter leaves layers up to 4,096 x 1,024 (1,638)
    alone.

    Args:
        smallest: harmonic mean of input and output features from which a layer is converted.

    Raises:
        UserError: the model has LoRA, or no layer is large enough with features in multiples of 16.
    """
    if model.lora is not None:
        raise UserError("model.float8: LoRA's layers have no products in 8 bits; set it to false")
    found = False
    for name, module in model.layers.named_modules():
        # Subclasses compute something else, and a router depends on small differences.
        if type(module) is not nn.Linear or name.endswith("router"):
            continue
        i, o = module.in_features, module.out_features
        if i % _TILE == 0 and o % _TILE == 0 and 2 * i * o / (i + o) >= smallest:
            module.__class__ = Float8Linear
            found = True
    if not found:
        raise UserError(
            f"model.float8: no layer has features in multiples of {_TILE} with a harmonic mean of "
            f"{smallest} or more, and smaller ones are slower in 8 bits; set it to false"
        )
