"""How many tokens a forward pass may have."""

from __future__ import annotations

import os

import torch

from lit_llm.errors import UserError
from lit_llm.evaluate.scoring.sharing import gather, ranks
from lit_llm.models.accounting.forward_memory import forward_tokens
from lit_llm.models.engine.budget import free_bytes
from lit_llm.models.transformer import Transformer

_MOST = {"cpu": 2048}
_MOST_ELSEWHERE = 16_384
"""Rows are no longer than this: longer ones are no faster. A CPU keeps what fits in its caches."""
_FEWEST = 64
"""Rows are no shorter than this, even if the memory is said to be full."""
_UNKNOWN = 1024
"""Tokens where the system does not tell its free memory."""


def free_share(model: Transformer) -> int | None:
    """Half of the free memory of the model's device, in bytes; None if the system does not tell.

    Processes of one machine divide the memory of its CPUs ($LOCAL_WORLD_SIZE, which launchers set).
    """
    device = model.embed.weight.device
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    try:
        return free_bytes(device) // (2 * sharing)
    except UserError:
        return None


def batch_tokens(model: Transformer) -> int:
    """Tokens in a row for which `free_share` is enough; the same on all ranks, which must call."""
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    free = free_share(model)
    here = _UNKNOWN
    if free is not None:
        here = forward_tokens(model.config, device, dtype.itemsize, free)
    here = max(_FEWEST, min(here, _MOST.get(device.type, _MOST_ELSEWHERE)))
    return min(gather({ranks()[0]: here}).values())
