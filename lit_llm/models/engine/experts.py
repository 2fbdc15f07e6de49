"""Experts whose products give a token the same bits whatever other tokens their experts have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.kernels.packed import packs
from lit_llm.models.mlp import Experts


class PackedExperts(Experts):
    """`Experts` with weights in oneDNN's layout and rows padded to a multiple of ``row_step``."""

    row_step: int
    packed: list[tuple[Tensor, Tensor, Tensor]]
    """Gate, up and down projection of each expert."""

    def forward(self, x_NC: Tensor, counts: Tensor) -> Tensor:
        """(N, C) -> (N, C), for rows that are sorted by expert; see `Experts.forward`."""
        outputs = []
        for rows, weights in zip(x_NC.split(counts.tolist()), self.packed, strict=True):
            if len(rows):
                padded = F.pad(rows, (0, 0, 0, -len(rows) % self.row_step))
                gate, up = (_product(padded, weight) for weight in weights[:2])
                hidden = self.activation(gate) * up
                outputs.append(_product(hidden, weights[2])[: len(rows)])
        return torch.cat(outputs)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def pack_experts(model: nn.Module, row_step: int) -> None:
    """Turn every `Experts` of ``model`` into `PackedExperts`, in place, one at a time.

    They stay as they are where `pack_linears` leaves linear layers as they are. The model can
    then be neither trained nor saved.
    """
    for module in model.modules():
        if type(module) is Experts and packs(module.gate_proj):
            matrices = (module.gate_proj, module.up_proj, module.down_proj)
            packed = [
                tuple(torch.ops.mkldnn._reorder_linear_weight(m.detach()) for m in expert)
                for expert in zip(*matrices, strict=True)
            ]
            del module.gate_proj, module.up_proj, module.down_proj
            module.__class__ = PackedExperts
            module.packed, module.row_step = packed, row_step  # type: ignore[assignment]
