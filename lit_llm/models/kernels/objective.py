"""What finetuning minimises at a position, beside the plain cross-entropy, in chunks of positions.

As in `linear_cross_entropy`, the logits of all positions are never in memory at once. The formulas
are those of plain torch, which also differentiates them, chunk by chunk.

Shapes: N positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.models.kernels.limits import chunk_bytes
from lit_llm.models.kernels.loss import IGNORE, capped, power_of_two_share


@dataclass(frozen=True)
class Objective:
    """The loss of one position. The defaults give the cross-entropy (nll)."""

    kind: Literal["nll", "dft"] = "nll"
    """dft: the nll times the label's probability, which counts as a constant (arXiv:2508.05629)."""
    label_smoothing: float = 0.0
    """Share of the label's weight that all tokens of the vocabulary have in common."""
    anchor: float = 0.0
    """Weight of KL(reference || model) over the next token, as in the code of arXiv:2509.23753."""

    def losses(self, logits_NV: Tensor, labels_N: Tensor, reference_NV: Tensor | None) -> Tensor:
        """Return the loss of each position in nats, float32 (N,); 0 where the label is -100.

        Args:
            logits_NV: of the model.
            labels_N: int64.
            reference_NV: logits of the model that ``anchor`` holds on to.
        """
        log_p = logits_NV.float().log_softmax(-1)
        losses = -log_p.gather(1, labels_N[:, None].clamp(min=0))[:, 0]
        if self.kind == "dft":
            losses = losses * (-losses).exp().detach()
        if self.label_smoothing:
            smooth = self.label_smoothing
            losses = (1 - smooth) * losses - smooth * log_p.mean(-1)
        if self.anchor:
            assert reference_NV is not None
            log_q = reference_NV.float().log_softmax(-1)
            losses = losses + self.anchor * (log_q.exp() * (log_q - log_p)).sum(-1)
        return losses.masked_fill(labels_N == IGNORE, 0)


def linear_objective(
    x_NC: Tensor,
    weight_VC: Tensor,
    labels_N: Tensor,
    objective: Objective,
    reference: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    rows: tuple[Tensor, Tensor] | None = None,
    weights_N: Tensor | None = None,
) -> Tensor:
    """Sum of ``objective``'s losses for the logits ``x @ weight.T``, scaled and soft-capped.

    Each chunk's gradients are computed beside its loss, so the backward pass can run only once.

    Args:
        x_NC, weight_VC, labels_N: as in `linear_cross_entropy`.
        reference: input and weight of the reference's head, both without a gradient.
        rows: as in `linear_cross_entropy`; the reference has its own.
        weights_N: float32; factor of each position's loss. None: 1.

    Returns:
        float32 scalar, in nats.
    """
    if torch.is_autocast_enabled(x_NC.device.type):
        x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
    return _LinearObjective.apply(
        x_NC,
        weight_VC,
        *(rows or (None, None)),
        labels_N,
        objective,
        reference,
        scale,
        softcap,
        weights_N,
    )


class _LinearObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_VC: Tensor,
        rows_KC: Tensor | None,
        index_K: Tensor | None,
        labels_N: Tensor,
        objective: Objective,
        reference: tuple[Tensor, Tensor] | None,
        scale: float | None,
        softcap: float | None,
        weights_N: Tensor | None,
    ) -> Tensor:
        inputs = [i for i in range(3) if ctx.needs_input_grad[i]]
        grad_x = torch.empty_like(x_NC) if 0 in inputs else None
        # Of the weight and of the rows
        sums = {
            i: torch.zeros_like(of, dtype=torch.float32)
            for i, of in ((1, weight_VC), (2, rows_KC))
            if i in inputs and of is not None
        }
        loss = torch.zeros((), dtype=torch.float32, device=x_NC.device)
        share = None if x_NC.dtype == torch.float32 else power_of_two_share(labels_N, weights_N)
        rows = max(1, chunk_bytes(x_NC.device.type) // (4 * len(weight_VC)))

        def logits(x: Tensor, weight: Tensor, some: Tensor | None = None) -> Tensor:
            found = F.linear(x, weight.to(x.dtype))
            if some is not None and index_K is not None:
                found = found.index_copy(1, index_K, F.linear(x, some.to(x.dtype)))
            return capped(found.float(), scale, softcap)[0]

        with torch.autocast(x_NC.device.type, enabled=False):
            for start in range(0, len(x_NC), rows):
                here = slice(start, start + rows)
                theirs = None
                if reference is not None:
                    theirs = logits(reference[0][here].to(x_NC.dtype), reference[1])
                leaves = [x_NC[here].detach(), weight_VC.detach()]
                leaves += [] if rows_KC is None else [rows_KC.detach()]
                with torch.enable_grad():
                    for i in inputs:
                        leaves[i].requires_grad_()
                    losses = objective.losses(logits(*leaves), labels_N[here], theirs)
                    part = (losses if weights_N is None else losses * weights_N[here]).sum()
                    scaled = part if share is None else part * share
                loss += part.detach()
                if not inputs:
                    continue
                found = torch.autograd.grad(scaled, [leaves[i] for i in inputs])
                for i, part in zip(inputs, found, strict=True):
                    if i in sums:
                        sums[i] += part
                    elif grad_x is not None:
                        grad_x[here] = part
        ctx.save_for_backward(grad_x, sums.get(1), sums.get(2), share)
        ctx.dtypes = weight_VC.dtype, None if rows_KC is None else rows_KC.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, *grads, share = ctx.saved_tensors
        # Two dimensions, because a GPU rounds a factor without dimensions to the gradients' dtype.
        factor = (grad if share is None else grad / share).view(1, 1)
        scaled = (
            None if of is None else (of * factor).to(dtype)
            for of, dtype in zip(grads, ctx.dtypes, strict=True)
        )
        of_x = None if grad_x is None else (grad_x * factor).to(grad_x.dtype)
        return of_x, *scaled, None, None, None, None, None, None, None
