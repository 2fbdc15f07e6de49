"""8-bit AdamW of bitsandbytes (arXiv:2110.02861): states of 2 bytes per parameter instead of 8."""

from __future__ import annotations

import logging
from typing import Any

import torch

from lit_llm.errors import UserError

CLASSES = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
"""model.optimizer -> class in ``bitsandbytes.optim``.

Paged states move to host memory when GPU memory is full.
"""


def build_eight_bit(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Build the optimizer ``name`` for ``groups``, the output of `parameter_groups`.

    Embeddings keep float32 states, as the paper advises: their gradients are too uneven for 8 bits.
    bitsandbytes waits for the device after each parameter.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    # At import, bitsandbytes prints a message about a downloadable kernel for 4-bit inference on
    # CPUs. Training does not need this kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"model.optimizer={name} needs bitsandbytes: pip install 'lit_llm[quant]'"
        ) from error
    optimizer = getattr(bitsandbytes.optim, CLASSES[name])(groups, lr=lr, betas=(0.9, 0.95))
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for group in groups:
        if group["name"] == "embedding":
            manager.override_config(group["params"], "optim_bits", 32)
    return optimizer
