"""RMSNorm (arXiv:1910.07467) and LayerNorm, with or without a learned gain."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.eager import RMSNormalize, call


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), multiplied by a gain if the norm has one.

    The norm is computed in float32 and returned in x's dtype. With ``offset`` the gain is 1 +
    weight, and the product with the gain is taken in float32 too, as in Gemma.
    """

    def __init__(self, size: int, eps: float, weight: bool, offset: bool = False):
        super().__init__()
        self.size, self.eps, self.offset = size, eps, offset
        self.weight = nn.Parameter(torch.empty(size)) if weight else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the gain to 1."""
        if self.weight is not None:
            self.weight.fill_(0.0 if self.offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.offset:
            assert self.weight is not None
            return (
                F.rms_norm(x.float(), (self.size,), eps=self.eps) * (1 + self.weight.float())
            ).to(x.dtype)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return call(RMSNormalize, x, self.weight, self.eps)
        # From torch 2.12 on, rms_norm returns float32 under CUDA's autocast. For half types the
        # kernel keeps its own float32 sum.
        with torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext():
            y = F.rms_norm(x, (self.size,), eps=self.eps)
        return y if self.weight is None else y * self.weight.to(y.dtype)


class HeadNorm(nn.Module):
    """LayerNorm without bias over each head of (batch, heads, seq, head_dim).

    The gain has the shape (heads, head_dim).
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))

    def reset_parameters(self) -> None:
        """Set the gain to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=self.eps)  # float32 under CUDA's autocast
        return y.to(x.dtype) * self.weight[:, None].to(x.dtype)


def build_norm(config: TransformerConfig, size: int) -> nn.Module:
    """Build the norm that ``config`` names, over the last ``size`` channels."""
    if config.norm == "layernorm":
        return nn.LayerNorm(
            size, config.norm_eps, elementwise_affine=config.norm_weight, bias=config.norm_bias
        )
    return RMSNorm(size, config.norm_eps, config.norm_weight, config.norm_offset)
