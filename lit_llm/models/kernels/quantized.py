"""Weights of 4 or 8 bits: pack a matrix, unpack it, and multiply by it.

- ``nf4`` and ``fp4`` (arXiv:2305.14314): blocks of 64 weights, each weight one of 16 levels times
  the largest absolute value of its block (absmax). The absmax themselves have 8 bits, in blocks of
  256 (double quantisation, section 3 of the paper). This makes 4.13 bits per weight. Codes, levels
  and layout are those of bitsandbytes, whose functions are called.
- ``int8``: 255 levels times the absmax of each row. These are the weights of LLM.int8
  (arXiv:2208.07339); inputs are not quantised, so no columns of outliers have to be kept apart.

bitsandbytes' kernel unpacks two to four times faster than torch's operators, and unpacking takes a
tenth of the time of a product with 512 rows (docs/decisions.md, "Four bits on a CPU").
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.kernels.eager import product

Format = Literal["nf4", "fp4", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
_BLOCK, _NESTED_BLOCK = 64, 256
_CHUNK = 2**18
"""Weights that are packed at once, whole blocks.

bitsandbytes needs 25 bytes a weight beside the result. In chunks these stay in the cache.
"""
_TINY = torch.finfo(torch.float32).tiny


class Packed(NamedTuple):
    """A matrix (out, in) of N weights as three tensors.

    Float32 numbers are stored as int32 bits, because ``module.to(torch.bfloat16)`` rounds float32
    tensors.
    """

    codes: Tensor
    """4 bits: uint8 (ceil(N / 2),), the first weight of each pair in the high bits; int8: int8
    (out, in)."""
    absmax: Tensor
    """4 bits: uint8 (ceil(N / 64),), indices into bitsandbytes' dynamic map of 256 numbers; int8:
    empty."""
    scales: Tensor
    """Bits of float32 numbers, int32. 4 bits: the factor of each 256 absmax, then the offset of
    all; int8: the absmax of each row, (out,)."""


def pack(weight: Tensor, format: Format) -> Packed:
    """Quantise a matrix (out, in) of any floating-point dtype.

    Raises:
        UserError: 4 bits without bitsandbytes.
    """
    if format == "int8":
        rows = weight.float().abs().amax(1).clamp(min=_TINY)  # a row of zeros stays zeros
        levels = torch.round(weight.float() * (127.0 / rows[:, None])).to(torch.int8)
        return Packed(levels, levels.new_empty(0, dtype=torch.uint8), rows.view(torch.int32))
    functional = _functional()
    codes, largest = [], []
    for part in weight.reshape(-1).split(_CHUNK):
        packed, state = functional.quantize_4bit(
            part, blocksize=_BLOCK, compress_statistics=False, quant_type=format
        )
        codes.append(packed.view(-1))
        largest.append(state.absmax)
    wide = torch.cat(largest)
    offset = _mean_by_one_thread(wide)
    absmax, nested = functional.quantize_blockwise(wide - offset, blocksize=_NESTED_BLOCK)
    scales = torch.cat([nested.absmax, offset.view(1)])
    return Packed(torch.cat(codes), absmax, scales.view(torch.int32))


def _mean_by_one_thread(x: Tensor) -> Tensor:
    """Return the mean as bitsandbytes computes it, in float32, but always in the same order.

    Of more than 32,768 numbers each thread adds its share. The last bit of the mean then depends on
    the number of threads, and with it which of its 256 levels an absmax takes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return x.mean()
    finally:
        torch.set_num_threads(threads)


def unpack(packed: Packed, format: Format, out_features: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (out, in): computed in float32, rounded to ``dtype``."""
    codes, absmax, scales = packed.codes, packed.absmax, packed.scales.view(torch.float32)
    if format == "int8":
        return (codes * (scales / 127)[:, None]).to(dtype)
    ops = _operators()
    wide = ops.dequantize_blockwise(
        absmax, scales[:-1], _dynamic_map(codes.device), _NESTED_BLOCK, torch.float32
    )
    # As one row: for rows that are no multiple of the block, bitsandbytes 0.50.2 starts a new block
    # with each row on a CPU, which the packing does not, and gives other numbers.
    flat = (1, 2 * len(codes))
    weight = ops.dequantize_4bit(codes, wide + scales[-1], _BLOCK, format, flat, dtype)
    return weight.view(out_features, -1)


def shapes(out_features: int, in_features: int, format: Format) -> Packed:
    """Return tensors on the meta device with the shapes and dtypes that `pack` gives."""
    with torch.device("meta"):
        if format == "int8":
            codes = torch.empty(out_features, in_features, dtype=torch.int8)
            absmax, scales = torch.empty(0, dtype=torch.uint8), out_features
        else:
            blocks = -(-out_features * in_features // _BLOCK)
            codes = torch.empty(out_features * in_features // 2, dtype=torch.uint8)
            absmax = torch.empty(blocks, dtype=torch.uint8)
            scales = -(-blocks // _NESTED_BLOCK) + 1
        return Packed(codes, absmax, torch.empty(scales, dtype=torch.int32))


# A custom operator: a compiler would otherwise see that forward and backward pass unpack the same
# tensors, do it once, and keep the result in between.
@torch.library.custom_op(
    "lit_llm::quantized_product",
    mutates_args=(),
    schema="(Tensor x, Tensor codes, Tensor absmax, Tensor scales, Tensor? bias, str format, "
    "int features, int out_features, bool back) -> Tensor",
)
def quantized_product(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    format: Format,
    features: int,
    out_features: int,
    back: bool,
) -> Tensor:
    """Return ``x W^T + bias``, or ``x W`` with ``back``: (..., features), in x's dtype.

    W (out_features, in_features) is unpacked in x's dtype and freed at the end. The backward pass
    unpacks it again.
    """
    weight = unpack(Packed(codes, absmax, scales), format, out_features, x.dtype)
    return product(x, weight.t() if back else weight, bias)


@quantized_product.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    format: Format,
    features: int,
    out_features: int,
    back: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], features)


def _keep_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, absmax, scales, _, ctx.format, _, ctx.out_features, _ = inputs
    ctx.save_for_backward(codes, absmax, scales)
    ctx.features = x.shape[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_x = quantized_product(
        grad, *ctx.saved_tensors, None, ctx.format, ctx.features, ctx.out_features, True
    )
    return by_x, *[None] * 8


quantized_product.register_autograd(_backward, setup_context=_keep_packed)


@cache
def _functional() -> Any:
    """Return ``bitsandbytes.functional``."""
    # At import, bitsandbytes prints a message about a downloadable kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise UserError(
            "model.quantize: nf4 and fp4 need bitsandbytes: pip install 'lit_llm[quant]'; int8 "
            "does not"
        ) from error
    return functional


def _operators() -> Any:
    _functional()  # its import registers them
    return torch.ops.bitsandbytes


@cache
def _dynamic_map(device: torch.device) -> Tensor:
    """Return the 256 numbers of 8 bits with a dynamic exponent (arXiv:2110.02861)."""
    table: Tensor = _functional().create_dynamic_map()
    return table.to(device)
