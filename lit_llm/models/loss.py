"""Cross-entropy of a large head without its logits: a chunk of positions at a time, gradients on the way.

Shapes: N positions, C hidden width, V vocabulary. The logits (N, V) of a step are its largest tensor by far, held in
the compute dtype and again in float32, and their gradient too; here no more than ``CHUNK_BYTES`` of them are there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_llm.models.limits import CHUNK_BYTES


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """The sum over positions of ``cross_entropy(softcap * tanh(scale * x @ weight.T / softcap), labels)``.

    Exact, and so are its gradients: each chunk's are computed beside its loss, where the logits are at hand, instead of
    again in the backward pass.

    Args:
        x_NC: what the head reads.
        weight_VC: the head's weight; multiplied in x's dtype, or in autocast's.
        labels_N: int64; all of them are predicted.

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
            chunk, labels = x_NC[start : start + rows], labels_N[start : start + rows, None]
            logits = (chunk @ weight.T).float()
            if scale is not None:
                logits *= scale
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            normalizer = logits.logsumexp(-1, keepdim=True)
            loss += (normalizer - logits.gather(1, labels)).sum()
            if grad_x is None and grad_weight is None:
                continue
            slope = None if softcap is None else 1 - (logits / softcap).square_()  # of the tanh
            grad = logits.sub_(normalizer).exp_()  # of the loss by the capped logits: softmax less one at the label
            grad.scatter_add_(1, labels, grad.new_full(labels.shape, -1.0))
            if slope is not None:
                grad *= slope
            if scale is not None:
                grad *= scale
            grad = grad.to(x_NC.dtype)
            if grad_x is not None:
                grad_x[start : start + rows] = grad @ weight
            if grad_weight is not None and grad.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.T, chunk)
            elif grad_weight is not None:
                grad_weight += grad.T @ chunk
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
