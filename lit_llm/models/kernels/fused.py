"""Run several linear layers of one input as one matrix product where that pays off.

The weights of the layers stay separate, under their own names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.kernels.eager import OneDNNLinear, OneDNNProducts

SIDE_BY_SIDE = {"cuda"}
"""Device types on which compiled layers become one product.

On a CPU the copy costs more than the single product gains.
"""


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return ``layer(x)`` of each layer: (..., in_features) -> (..., out_features).

    Compiled for CUDA, plain layers become one product with their weights side by side. Autocast
    copies the weights in any case, and the compiler writes this copy side by side. In eager float32
    on a CPU the gradients with respect to ``x`` are added up inside the products. All other layers
    (LoRA, float8, layers cut by tensor parallelism, which have hooks) are called one by one.
    """
    if torch.compiler.is_compiling():
        if x.device.type in SIDE_BY_SIDE and all(_plain(layer) for layer in layers):
            return _side_by_side(x, layers)
    elif all(isinstance(layer, OneDNNLinear) and layer.takes(x) for layer in layers):
        return OneDNNProducts.apply(x, *(t for layer in layers for t in (layer.weight, layer.bias)))
    return tuple(layer(x) for layer in layers)


def _side_by_side(x: Tensor, layers: tuple[Any, ...]) -> tuple[Tensor, ...]:
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def _plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, OneDNNLinear) and not layer._forward_pre_hooks
