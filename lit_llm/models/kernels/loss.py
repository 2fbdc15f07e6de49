"""Cross-entropy of a large head in chunks of positions, without all logits in memory.

The logits (N, V) of a step are by far its largest tensor. They exist in the compute dtype, again in
float32, and once more as their gradient. Here no more than ``chunk_bytes`` of them exist at a time.
The gradients are computed together with the loss of each chunk.

Shapes: N positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_llm.models.kernels.eager import product
from lit_llm.models.kernels.limits import chunk_bytes

IGNORE = -100
"""Label of a position without a prediction: the default of torch's cross-entropy."""
_CACHED_BYTES = 2 * 2**20
"""Float32 bytes of a chunk that a CPU's softmax processes at once.

They then stay in the cache between passes.
"""
_SLAB = 8192
"""Rows of the weight's gradient that a product of another dtype is added to at once.

The whole gradient therefore never exists twice.
"""


def linear_cross_entropy(
    x_NC: Tensor,
    weight_VC: Tensor,
    labels_N: Tensor,
    scale: float | None = None,
    softcap: float | None = None,
    compiled: bool = False,
    rows: tuple[Tensor, Tensor] | None = None,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Sum of ``cross_entropy(softcap * tanh(scale * x @ weight.T / softcap), labels)``.

    The sum over positions is exact, and so are its gradients. Each chunk's gradients are computed
    beside its loss, where the logits are available, instead of again in the backward pass. The
    backward pass can therefore run only once. Nothing waits for the device.

    Args:
        x_NC: the input of the head.
        weight_VC: the head's weight; multiplied in x's dtype, or in autocast's dtype.
        labels_N: int64; positions with -100 add nothing.
        compiled: compile the operations between the products into one or two passes over a chunk.
        rows: rows (K, C) that replace those of the weight, and their places, int64 (K,). Their
            gradient is computed without that of the weight, of which one copy is made.
        weights_N: float32; factor of each position's loss. None: 1.

    Returns:
        float32 scalar, in nats.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    return _LinearCrossEntropy.apply(
        x_NC, weight_VC, labels_N, scale, softcap, compiled, *(rows or (None, None)), weights_N
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_VC: Tensor,
        labels_N: Tensor,
        scale: float | None,
        softcap: float | None,
        compiled: bool,
        rows_KC: Tensor | None,
        index_K: Tensor | None,
        weights_N: Tensor | None,
    ) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        weight = weight_VC.to(x_NC.dtype)
        grad_rows = None
        if rows_KC is not None and index_K is not None:
            weight = weight.index_copy(0, index_K, rows_KC.to(weight.dtype))
            if ctx.needs_input_grad[6]:
                grad_rows = torch.zeros_like(rows_KC, dtype=torch.float32)
        grad_x = torch.empty_like(x_NC) if needs_x else None
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        largest = max(1, chunk_bytes(x_NC.device.type) // (weight.itemsize * len(weight)))
        # Chunks of equal size, so that the compiler sees one shape (the last may be shorter).
        rows = max(1, -(-len(x_NC) // max(1, -(-len(x_NC) // largest))))
        loss_and_grad = _compiled() if compiled else _in_blocks
        share = None if x_NC.dtype == torch.float32 else power_of_two_share(labels_N, weights_N)
        # For each chunk: logits, loss and the gradient of the logits; from this gradient the
        # chunk's rows of grad_x and its contribution to grad_weight.
        for start in range(0, len(x_NC), rows):
            labels = labels_N[start : start + rows]
            # Positions without a label are masked in the C columns on both sides of the head, which
            # is cheaper than in its V columns.
            unlabelled = (labels == IGNORE)[:, None]
            chunk = x_NC[start : start + rows].masked_fill(unlabelled, 0)
            factors = None if weights_N is None else weights_N[start : start + rows, None]
            part, grad = loss_and_grad(
                product(chunk, weight), labels, scale, softcap, share, factors
            )
            loss += part
            if grad_x is not None:
                grad_x[start : start + rows] = product(grad, weight.t()).masked_fill_(unlabelled, 0)
            if grad_weight is not None and grad.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.T, chunk)
            elif grad_weight is not None:
                for slab, of in zip(
                    grad_weight.split(_SLAB), grad.split(_SLAB, dim=1), strict=True
                ):
                    slab += of.T @ chunk
            if grad_rows is not None and index_K is not None:
                grad_rows += grad[:, index_K].T @ chunk
            del grad  # free this chunk's gradient before the next chunk's is created
        ctx.save_for_backward(grad_x, grad_weight, grad_rows, share)
        ctx.dtype, ctx.done = weight_VC.dtype, False
        ctx.rows_dtype = None if rows_KC is None else rows_KC.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.done:
            raise RuntimeError(
                "linear_cross_entropy scales its gradients in place: call backward once"
            )
        ctx.done = True
        grad_x, grad_weight, grad_rows, share = ctx.saved_tensors
        # The factor has two dimensions, as the gradients have. On a GPU a tensor without dimensions
        # is rounded to their dtype before the multiplication.
        factor = (grad if share is None else grad / share).view(1, 1)
        scaled = (
            None if grad_x is None else grad_x.mul_(factor),
            None if grad_weight is None else grad_weight.mul_(factor).to(ctx.dtype),
        )
        of_rows = None if grad_rows is None else grad_rows.mul_(factor).to(ctx.rows_dtype)
        return *scaled, None, None, None, None, of_rows, None, None


def power_of_two_share(labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Return the factor of half-precision gradients before they are rounded.

    The backward pass divides by it again. Training takes the mean over labelled positions. With
    this factor, the rounded gradients are then multiplied by a power of two, which is exact.
    Multiplied by 1/8176, all of them would be rounded down: a number of 8 bits times 1.002 is that
    number again.

    Returns:
        2^k / labelled positions (or the sum of their weights), in (1/2, 1]: a float32 scalar.
    """
    labelled = labels_N != IGNORE
    counted = labelled if weights_N is None else weights_N.masked_fill(~labelled, 0)
    mantissa, _ = torch.frexp(counted.sum().float())  # in [1/2, 1); 0 of 0
    return 0.5 / torch.where(mantissa > 0, mantissa, 0.5)


def _in_blocks(
    logits_NV: Tensor,
    labels_N: Tensor,
    scale: float | None,
    softcap: float | None,
    share: Tensor | None,
    weights_N1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of ``logits_NV`` and its gradient times ``share``.

    With ``weights_N1`` the loss and the gradient of each position are multiplied by its weight. The
    gradient overwrites the logits. Where a label is -100 the gradient is undefined.
    """
    loss = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
    cached = logits_NV.device.type == "cpu"
    size = max(1, _CACHED_BYTES // (4 * logits_NV.shape[1])) if cached else len(logits_NV)
    # The gradient of the cross-entropy by the logits is softmax(x) - one_hot(label). The loss needs
    # log(sum(exp(x))): the largest softmax value is exp(largest) / sum(exp(x)).
    for start in range(0, len(logits_NV), size):
        here = slice(start, start + size)
        logits, labels = logits_NV[here], labels_N[here]
        weights = None if weights_N1 is None else weights_N1[here]
        labelled, labels_N1 = labels[:, None] != IGNORE, labels[:, None].clamp(min=0)
        x, slope = capped(logits.float(), scale, softcap)
        largest, at_label = x.amax(-1, keepdim=True), x.gather(1, labels_N1)
        # One kernel instead of four (subtract, exp, sum, divide). It reads a row before it writes
        # it.
        grad = torch.softmax(x, -1, out=x) if cached and x is logits else x.softmax(-1)
        log_total = -grad.amax(-1, keepdim=True).log()
        losses = (log_total + largest - at_label).masked_fill(~labelled, 0)
        loss += (losses if weights is None else losses * weights).sum()
        grad.scatter_add_(1, labels_N1, grad.new_full((1, 1), -1.0).expand_as(labels_N1))
        if slope is not None:
            grad *= slope
        if share is not None:
            grad *= share
        if weights is not None:
            grad *= weights
        if grad is not logits:
            logits.copy_(grad)
    return loss, logits_NV


def _whole(
    logits_NV: Tensor,
    labels_N: Tensor,
    scale: float | None,
    softcap: float | None,
    share: Tensor | None,
    weights_N1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `_in_blocks` in a form for the compiler: no scatter, nothing in place."""
    labelled, labels_N1 = labels_N[:, None] != IGNORE, labels_N[:, None].clamp(min=0)
    x, slope = capped(logits_NV.float(), scale, softcap)
    log_total = x.logsumexp(-1, keepdim=True)
    at_label = torch.arange(x.shape[1], device=x.device) == labels_N1
    grad = (x - log_total).exp() - at_label.float()
    losses = (log_total - x.gather(1, labels_N1)).masked_fill(~labelled, 0)
    for factor in (slope, share, weights_N1):
        grad = grad if factor is None else grad * factor
    loss = (losses if weights_N1 is None else losses * weights_N1).sum()
    return loss, grad.to(logits_NV.dtype)


@cache
def _compiled() -> Any:
    return torch.compile(_whole, dynamic=False)


def capped(
    logits: Tensor, scale: float | None, softcap: float | None
) -> tuple[Tensor, Tensor | float | None]:
    """Return the scaled and soft-capped ``logits`` and their derivative; None where it is 1."""
    if softcap is None:
        return (logits, None) if scale is None else (logits * scale, scale)
    squashed = torch.tanh(logits * ((scale or 1.0) / softcap))
    return softcap * squashed, (scale or 1.0) * (1 - squashed.square())
