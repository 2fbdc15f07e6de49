"""Cross-entropy of a large head without its logits: a chunk of positions at a time, gradients on the way.

Shapes: N positions, C hidden width, V vocabulary. The logits (N, V) of a step are its largest tensor by far, held in
the compute dtype and again in float32, and their gradient too; here no more than ``CHUNK_BYTES`` of them are there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_llm.models.eager import product
from lit_llm.models.limits import CHUNK_BYTES

IGNORE = -100
"""Label of a position that is not predicted: torch's cross-entropy default."""
_CACHED_BYTES = 2 * 2**20
"""Of a chunk on a CPU, what the softmax passes over at once: it then stays in the cache from pass to pass."""
_SLAB = 8192
"""Rows of the weight's gradient that a product of another dtype is added to at once: it is never there twice."""


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """The sum over positions of ``cross_entropy(softcap * tanh(scale * x @ weight.T / softcap), labels)``.

    Exact, and so are its gradients: each chunk's are computed beside its loss, where the logits are at hand, instead of
    again in the backward pass. Nothing waits for the device.

    Args:
        x_NC: what the head reads.
        weight_VC: the head's weight; multiplied in x's dtype, or in autocast's.
        labels_N: int64; positions with -100 add nothing.

    Returns:
        float32 scalar, in nats.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    return _LinearCrossEntropy.apply(x_NC, weight_VC, labels_N, scale, softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, scale: float | None, softcap: float | None
    ) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        weight = weight_VC.to(x_NC.dtype)
        grad_x = torch.empty_like(x_NC) if needs_x else None
        grad_weight = torch.zeros_like(weight_VC, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        rows = max(1, CHUNK_BYTES // (4 * len(weight)))
        for start in range(0, len(x_NC), rows):
            chunk = x_NC[start : start + rows]
            logits = product(chunk, weight).float()
            block = max(1, _CACHED_BYTES // (4 * len(weight))) if logits.device.type == "cpu" else rows
            for part, labels in zip(logits.split(block), labels_N[start : start + rows].split(block), strict=True):
                loss += _loss_to_grad(part, labels, scale, softcap)
            grad = logits.to(x_NC.dtype)
            if grad_x is not None:
                grad_x[start : start + rows] = grad @ weight
            if grad_weight is not None and grad.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.T, chunk)
            elif grad_weight is not None:
                for slab, of in zip(grad_weight.split(_SLAB), grad.split(_SLAB, dim=1), strict=True):
                    slab += of.T @ chunk
            del logits, grad  # before the next chunk's are made
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.dtype = weight_VC.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_weight = ctx.saved_tensors
        scaled = (
            None if grad_x is None else grad_x * grad.to(grad_x.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.dtype),
        )
        return *scaled, None, None, None


def _loss_to_grad(logits_NV: Tensor, labels_N: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """The loss of float32 ``logits_NV``, which become its gradient by them in place."""
    labelled, labels_N1 = labels_N[:, None] != IGNORE, labels_N[:, None].clamp(min=0)
    if scale is not None:
        logits_NV *= scale
    if softcap is not None:
        logits_NV.div_(softcap).tanh_()
        slope = 1 - logits_NV.square()
        logits_NV *= softcap
    largest, at_label = logits_NV.amax(-1, keepdim=True), logits_NV.gather(1, labels_N1)
    grad = logits_NV.sub_(largest).exp_()  # of the loss by the capped logits: softmax less one at the label
    total = grad.sum(-1, keepdim=True)
    grad *= labelled / total
    grad.scatter_add_(1, labels_N1, -labelled.to(grad.dtype))
    if softcap is not None:
        grad *= slope
    if scale is not None:
        grad *= scale
    return (total.log() + largest - at_label).masked_fill(~labelled, 0).sum()
