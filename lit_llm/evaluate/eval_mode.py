"""A model in eval mode for the time of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run ``model`` eagerly, in eval mode and without gradients; restore its modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Eager mode, because each length would be compiled as a new shape.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training
