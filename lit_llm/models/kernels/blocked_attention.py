"""Causal attention on a CPU as matrix products over blocks of queries.

torch's CPU kernel for SDPA reaches a third of the speed of plain matrix products in bfloat16
(docs/decisions.md, "Attention on a CPU"). Here all weights of a block of queries are in memory at
once, so the softmax takes one pass, and keys after the block are skipped. As in torch's kernel,
only q, k and v are kept for the backward pass, which computes the weights again.

Shapes: B batch, T positions, H query heads, K key/value heads, G = H / K, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LONGEST = 2048
"""Largest number of positions at which this is faster than torch's kernel."""
_WEIGHTS_BYTES = 16 * 2**20
"""Maximum bytes of a block's weights: larger blocks do not stay in the cache between passes."""
_MOST_BLOCKS = 64
"""Maximum number of blocks in a compiled graph, which unrolls the loop over blocks."""


def suits(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> bool:
    """Whether `BlockedAttention` can replace causal SDPA here and is faster."""
    B, H, T, _ = q_BHTD.shape
    if T > _LONGEST or not computable(q_BHTD, k_BKTD, v_BKTD):
        return False
    return (
        not torch.compiler.is_compiling()
        or len(list(_blocks(B, H, T, q_BHTD.itemsize))) <= _MOST_BLOCKS
    )


def computable(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> bool:
    """Whether kernels on a CPU take these tensors: T = S, one dtype, which autocast leaves."""
    T = q_BHTD.shape[2]
    if q_BHTD.device.type != "cpu" or T == 0 or k_BKTD.shape[2] != T:
        return False
    if not q_BHTD.dtype == k_BKTD.dtype == v_BKTD.dtype:
        return False
    computed = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BHTD.dtype
    return q_BHTD.dtype == computed and computed in (torch.float32, torch.bfloat16)


class BlockedAttention(torch.autograd.Function):
    """``F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)``.

    The weights have q's dtype before and after the softmax, as in transformers' "eager" attention.
    Sums inside products and softmax are float32.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
        """Return (B, H, T, D), laid out in memory as (B, T, H, D) for the output projection."""
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD)
        ctx.scale = scale
        B, H, T, _ = q_BHTD.shape
        y_BHTD = heads_inside(q_BHTD)
        for rows, start, end in _blocks(B, H, T, q_BHTD.itemsize):
            k, v = _flat(k_BKTD[rows, :, :end]), _flat(v_BKTD[rows, :, :end])
            q_block = q_BHTD[rows, :, start:end]
            weights = _weights(_grouped(q_block, k), k, start, scale)
            y_BHTD[rows, :, start:end] = torch.bmm(weights, v).view(q_block.shape)
        return y_BHTD

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_BHTD: Tensor
    ) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BKTD, v_BKTD = ctx.saved_tensors
        B, H, T, _ = q_BHTD.shape
        grad_q = heads_inside(q_BHTD)
        # Several blocks of queries add to the gradients of the same keys and values, so these sums
        # are float32.
        grad_k, grad_v = (t.new_zeros(t.shape, dtype=torch.float32) for t in (k_BKTD, v_BKTD))
        # For each block: compute the weights P again, then dV = P^T dO, dP = dO V^T, the softmax's
        # gradient dS, dQ = dS K and dK = dS^T Q.
        for rows, start, end in _blocks(B, H, T, q_BHTD.itemsize):
            k, v = _flat(k_BKTD[rows, :, :end]), _flat(v_BKTD[rows, :, :end])
            q_block = q_BHTD[rows, :, start:end]
            q, grad = _grouped(q_block, k), _grouped(grad_BHTD[rows, :, start:end], k)
            weights = _weights(q, k, start, ctx.scale)
            seen = grad_v[rows, :, :end]
            seen += torch.bmm(weights.transpose(1, 2), grad).view(seen.shape)
            by_weights = torch.bmm(grad, v.transpose(1, 2))
            by_scores = (
                torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
                * ctx.scale
            )
            grad_q[rows, :, start:end] = torch.bmm(by_scores, k).view(q_block.shape)
            seen = grad_k[rows, :, :end]
            seen += torch.bmm(by_scores.transpose(1, 2), q).view(seen.shape)
        return grad_q, grad_k.to(k_BKTD.dtype), grad_v.to(v_BKTD.dtype), None


def _blocks(B: int, H: int, T: int, itemsize: int) -> Iterator[tuple[slice, int, int]]:
    """Yield rows of the batch and a range of queries (start, end) that are computed at once."""
    queries = 128 if T <= 1024 else 256
    together = max(1, _WEIGHTS_BYTES // (itemsize * H * queries * T))
    for row in range(0, B, together):
        for start in range(0, T, queries):
            yield slice(row, row + together), start, min(T, start + queries)


def _weights(q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
    """Return softmax(scale * q k^T): (b * K, G * t, S).

    ``q`` holds (b * K, G * t, D) queries from position ``start`` on.
    """
    seen = k.shape[1]
    hidden = q.new_full((seen - start, seen), -torch.inf).triu(start + 1)
    hidden = hidden.repeat(q.shape[1] // (seen - start), 1)
    return torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scale).softmax(-1)


def _flat(t: Tensor) -> Tensor:
    """(b, K, S, D) -> (b * K, S, D)."""
    return t.reshape(-1, *t.shape[2:])


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    """(b, H, t, D) -> (b * K, G * t, D): the query heads of a key head become consecutive rows."""
    return q.reshape(len(k), -1, q.shape[3])


def heads_inside(like: Tensor) -> Tensor:
    """Empty (B, H, T, D), laid out in memory as (B, T, H, D) for the output projection."""
    B, H, T, D = like.shape
    return like.new_empty(B, T, H, D).transpose(1, 2)
