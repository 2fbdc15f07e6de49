"""Attention over forests of token trees on a CPU, as matrix products over blocks of queries.

A row holds trees in depth-first order (`Forest`). For each block of queries only those keys are
read that at least one of its queries sees: the path to the root and the block itself. Packed
documents are trees of one branch, so a document costs what it would cost alone.

It is an operator of torch's library, because its loops depend on the data: the compiler calls it
as it is, and breaks no graph.

Shapes: B batch, T positions, H query heads, K key/value heads, G = H / K, D head width, n keys that
a block reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_llm.models.kernels.blocked_attention import heads_inside

_QUERIES = 128
"""Queries in a block."""


@torch.library.custom_op("lit_llm::forest_attention", mutates_args=(), device_types="cpu")
def forest_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    until_BT: Tensor,
    position_BT: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    """Weighted values (B, H, T, D) of the keys that each query sees, in q's dtype.

    Query i sees key j if j <= i < until[j], and with a window if also
    position[i] - position[j] < window.

    Args:
        q_BHTD, k_BKTD, v_BKTD: float32 or bfloat16. With more keys than queries, the queries are
            those of the last positions, and there is no backward pass.
        until_BT, position_BT: integers, see `Forest`.
        window: number of positions that a query sees on its path; 0 for all.
        scale: factor of the scores.
    """
    y_BHTD = heads_inside(q_BHTD)
    past = k_BKTD.shape[2] - q_BHTD.shape[2]
    for row, start, end, keys, hidden in _blocks(until_BT, position_BT, window, q_BHTD.dtype, past):
        here = slice(start - past, end - past)
        q = _grouped(q_BHTD[row, :, here], k_BKTD.shape[1])
        k, v = _read(k_BKTD[row], keys), _read(v_BKTD[row], keys)
        weights = _weights(q, k, hidden, scale)
        y_BHTD[row, :, here] = torch.bmm(weights, v).view(-1, end - start, q.shape[2])
    return y_BHTD


@forest_attention.register_fake
def _(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, until_BT: Tensor, position_BT: Tensor,
    window: int, scale: float,
) -> Tensor:  # fmt: skip
    return heads_inside(q_BHTD)


@torch.library.custom_op("lit_llm::forest_attention_backward", mutates_args=(), device_types="cpu")
def _forest_attention_backward(
    grad_BHTD: Tensor, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, until_BT: Tensor,
    position_BT: Tensor, window: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. The weights are computed again."""
    grad_q = heads_inside(q_BHTD)
    # Several blocks of queries add to the gradients of the same keys and values, so these sums are
    # float32.
    grad_k, grad_v = (t.new_zeros(t.shape, dtype=torch.float32) for t in (k_BKTD, v_BKTD))
    for row, start, end, keys, hidden in _blocks(until_BT, position_BT, window, q_BHTD.dtype):
        q = _grouped(q_BHTD[row, :, start:end], k_BKTD.shape[1])
        grad = _grouped(grad_BHTD[row, :, start:end], k_BKTD.shape[1])
        k, v = _read(k_BKTD[row], keys), _read(v_BKTD[row], keys)
        weights = _weights(q, k, hidden, scale)
        _add(grad_v[row], keys, torch.bmm(weights.transpose(1, 2), grad))
        by_weights = torch.bmm(grad, v.transpose(1, 2))
        by_scores = (
            torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype) * scale
        )
        grad_q[row, :, start:end] = torch.bmm(by_scores, k).view(-1, end - start, q.shape[2])
        _add(grad_k[row], keys, torch.bmm(by_scores.transpose(1, 2), q))
    return grad_q, grad_k.to(k_BKTD.dtype), grad_v.to(v_BKTD.dtype)


@_forest_attention_backward.register_fake
def _(
    grad_BHTD: Tensor, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, until_BT: Tensor,
    position_BT: Tensor, window: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    empty = torch.empty_like
    contiguous = torch.contiguous_format
    return (
        heads_inside(q_BHTD),
        empty(k_BKTD, memory_format=contiguous),
        empty(v_BKTD, memory_format=contiguous),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
    grads = _forest_attention_backward(grad_BHTD, *ctx.saved_tensors, ctx.window, ctx.scale)
    return *grads, None, None, None, None


forest_attention.register_autograd(_backward, setup_context=_save)


def _blocks(
    until_BT: Tensor, position_BT: Tensor, window: int, dtype: torch.dtype, past: int = 0
) -> Iterator[tuple[int, int, int, slice | Tensor, Tensor]]:
    """Yield (row, first query, end, keys that the block reads, hidden (t, n)) of each block.

    The first ``past`` positions of a row have no query.
    ``hidden`` is -inf where a query does not see a key, and 0 elsewhere. Every query sees itself.
    """
    T = until_BT.shape[1]
    for row, (until, position) in enumerate(zip(until_BT, position_BT, strict=True)):
        for start in range(past, T, _QUERIES):
            end = min(T, start + _QUERIES)
            seen = until[:end] > start
            if window:
                seen &= position[:end] > position[start:end].min() - window
            keys = seen.nonzero()[:, 0]
            queries = torch.arange(start, end)[:, None]
            hides = (keys > queries) | (until[keys] <= queries)
            if window:
                hides |= position[start:end, None] - position[keys] >= window
            hidden = torch.zeros(hides.shape, dtype=dtype).masked_fill_(hides, -torch.inf)
            first, count = int(keys[0]), len(keys)
            consecutive = int(keys[-1]) - first + 1 == count
            yield row, start, end, slice(first, first + count) if consecutive else keys, hidden


def _weights(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T): (K, G * t, n)."""
    bias = hidden.repeat(q.shape[1] // len(hidden), 1)
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)


def _read(t_KTD: Tensor, keys: slice | Tensor) -> Tensor:
    """(K, T, D) -> (K, n, D)."""
    return t_KTD[:, keys] if isinstance(keys, slice) else t_KTD.index_select(1, keys)


def _add(total_KTD: Tensor, keys: slice | Tensor, part_KnD: Tensor) -> None:
    if isinstance(keys, slice):
        total_KTD[:, keys] += part_KnD
    else:
        total_KTD.index_add_(1, keys, part_KnD.to(total_KTD.dtype))


def _grouped(q_HtD: Tensor, K: int) -> Tensor:
    """(H, t, D) -> (K, G * t, D): the query heads of a key head become consecutive rows."""
    return q_HtD.reshape(K, -1, q_HtD.shape[2])
