"""The optimizer step of a table of which a batch uses few rows: Adam without momentum, row by row.

Adam's averages decay in every step, also for the rows that a batch does not use. A row that is used
once therefore goes on moving: with betas of (0.9, 0.95) by several times the learning rate, and
without a gradient. Here a row's second moment decays only when the row is used, and there is no
first moment, which saves a table's size of memory. What this brought is in docs/decisions.md ("What
makes a model learn faster"). ``torch.optim.SparseAdam`` has the same idea with momentum, and needs
sparse gradients, which neither clipping nor FSDP2 takes.

Shapes: V rows, E width of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_used_rows(
    table_VE: Tensor,
    grad_VE: Tensor,
    steps_V1: Tensor,
    second_VE: Tensor,
    *,
    lr: float,
    beta2: float,
    eps: float,
    found_inf: Tensor | None = None,
    find_rows: bool,
) -> None:
    """Update, in place, the rows whose gradient is not zero.

    Args:
        table_VE: the weights.
        grad_VE: their gradient; rows that the batch does not use are zero.
        steps_V1: float32 (V, 1), how often each row was updated.
        second_VE: each element's running mean of squared gradients, over the row's own updates.
        lr: learning rate.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        found_inf: nothing changes if it is 1, see `MuonAdamW`.
        find_rows: compute the used rows only. On a CPU this is faster. On a GPU the host would have
            to wait for their number, so all rows are computed there; the result is the same.
    """
    used_V1 = (grad_VE != 0).any(-1, keepdim=True)
    if found_inf is not None:
        used_V1 &= found_inf == 0
    if find_rows:
        rows = used_V1.flatten().nonzero().flatten()
        grad, used, n, second = grad_VE[rows], used_V1[rows], steps_V1[rows] + 1, second_VE[rows]
    else:
        # With `found_inf` the gradient may be infinite, and 0 * inf is nan.
        grad, used, n = torch.where(used_V1, grad_VE, 0.0), used_V1, steps_V1 + used_V1
        second = second_VE
    second = second + (grad.square() - second) * ((1 - beta2) * used)
    # As in Adam, the mean is divided by the sum of its weights. An unused row has no steps yet.
    mean_square = second / (1 - beta2 ** n.clamp(min=1))
    update = grad / (mean_square.sqrt_().add_(eps))
    if find_rows:
        steps_V1[rows], second_VE[rows] = n, second.to(second_VE.dtype)
        table_VE.index_add_(0, rows, update.to(table_VE.dtype), alpha=-lr)
    else:
        steps_V1.copy_(n)
        second_VE.copy_(second)
        table_VE.add_(update, alpha=-lr)
