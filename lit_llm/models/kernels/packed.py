"""Linear layers with weights in oneDNN's own layout, for inference on a CPU.

Decoding reads every weight once per token, so its speed is the speed at which a matrix streams from
memory. The kernel that ``nn.Linear`` calls for one to eight rows reaches a fraction of that speed.
oneDNN with weights already blocked for its kernels is two to three times as fast
(docs/decisions.md, "Decoding"), and no slower for long prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """A linear layer whose ``weight`` has oneDNN's layout, for inference only.

    ``weight.to_dense()`` is the plain matrix.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the weight's dtype."""
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Turn every plain ``nn.Linear`` of ``model`` into a `PackedLinear`, in place.

    Layers are converted one at a time, so that no more than one is in memory twice. An embedding
    tied to the head keeps its own copy. Layers stay as they are where oneDNN has no kernel for
    them: on other devices, in dtypes other than float32 and bfloat16, and in bfloat16 if the CPU
    has no instructions for it.
    """
    for module in model.modules():
        # Subclasses compute something else, so they and their weights stay as they are.
        if type(module) is nn.Linear and packs(module.weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
            module.weight = nn.Parameter(packed, requires_grad=False)
            module.__class__ = PackedLinear


def packs(weight: Tensor) -> bool:
    """Whether oneDNN has a kernel for a packed matrix of this device and dtype."""
    if not torch.backends.mkldnn.is_available() or weight.device.type != "cpu":
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
