"""RMSNorm (arXiv:1910.07467) and LayerNorm, with or without a learned gain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a gain if it has one; computed in float32, returned in x's dtype."""

    def __init__(self, size: int, eps: float, weight: bool):
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(size)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, (self.size,), eps=self.eps)  # the kernel keeps its own float32 sum for half types
        return y if self.weight is None else y * self.weight.to(y.dtype)


def build_norm(config: TransformerConfig, size: int) -> nn.Module:
    """The norm that ``config`` names, over the last ``size`` channels."""
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, elementwise_affine=config.norm_weight)
    return RMSNorm(size, config.norm_eps, config.norm_weight)
