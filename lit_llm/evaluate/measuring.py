"""The state of a model while something is measured on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lit_llm.models.eval_mode import eval_mode


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Run ``model`` eagerly, in eval mode and without gradients; restore its modes afterwards."""
    # Eager mode, because each length would be compiled as a new shape.
    with eval_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
