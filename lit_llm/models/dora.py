"""DoRA (arXiv:2402.09353): the length of a weight's rows, trained apart from their direction.

A layer's weight is ``m * (W + s B A) / |W + s B A|``, row by row, with the trained magnitudes m
(out,) beside the trained A (rank, in) and B (out, rank). m starts as the norms of W's rows, so
training starts from the base model. In the gradient the norms count as constants (section 4.3 of
the paper), as in PEFT's ``DoraLinearLayer``.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the norms of the rows of ``weight + scale * b @ a``: float32 (out,).

    The sum itself, which is as large as the weight, is never made: with rows w of the weight and b
    of B, the square of a norm is ``|w|^2 + 2 s (w A^T) b + s^2 b (A A^T) b``.

    Args:
        weight: (out, in).
        a: (rank, in).
        b: (out, rank).
    """
    with torch.autocast(weight.device.type, enabled=False):  # its products are too coarse
        weight, a, b = weight.float(), a.float(), b.float()
        squares = torch.linalg.vector_norm(weight, dim=1).square()
        mixed = torch.addmm(2 * scale * (weight @ a.T), b, a @ a.T, alpha=scale**2)
        # The sum of three rounded terms can fall below 0 where the row itself is 0.
        return (squares + (mixed * b).sum(1)).clamp(min=0).sqrt()


def scale_rows(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return ``weight`` (out, in) with rows of the lengths ``magnitude`` (out,)."""
    return weight * (magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None]
