"""The ordered list of things done to a freshly built model before training.

Sharding, activation checkpointing and float8 have their places here when the training engine brings them; today the
list is compile alone. A step here never changes the names in a state dict.
"""

from __future__ import annotations

import shutil

import torch

from lit_llm.models.transformer import Transformer


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: Triton on CUDA, a C++ compiler on CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return device.type == "cpu" and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def parallelize(model: Transformer, *, compile: bool) -> None:
    """Prepare ``model`` in place.

    compile: compile each block and the head in place. Blocks of one shape share one compiled graph, so start-up costs
    one block, and compiling in place leaves parameter names as they are.
    """
    if compile:
        for block in model.layers:
            block.compile(dynamic=False)
