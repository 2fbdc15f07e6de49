"""The ordered list of things done to a freshly built model before training.

Sharding, activation checkpointing and float8 have their places here when the training engine brings them; today the
list is compile alone. A step here never changes the names in a state dict.
"""

from __future__ import annotations

import torch

from lit_llm.models.transformer import Transformer


def parallelize(model: Transformer, *, compile: bool) -> None:
    """Prepare ``model`` in place.

    compile: compile each block, and head and loss together. Blocks of one shape share one compiled graph, so start-up
    costs one block, and compiling in place leaves parameter names as they are. Graphs are for the training shapes;
    evaluation and sampling run eagerly (``torch.compiler.set_stance``) rather than compile for each shape they meet.
    """
    if compile:
        for block in model.layers:
            block.compile(dynamic=False)
        model.head_losses = torch.compile(model.head_losses, dynamic=False)  # type: ignore[method-assign]
