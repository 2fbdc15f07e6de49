"""How many tokens of keys and values fit into memory."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_llm.errors import UserError
from lit_llm.models.transformer import Block, Transformer

MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def bytes_per_token(model: Transformer) -> int:
    """Bytes of the keys and values of one position in all layers, in the weights' dtype."""
    block, config = model.layers[0], model.config
    assert isinstance(block, Block) and config.head_dim is not None
    heads = block.attention.num_kv_heads
    return 2 * config.num_layers * heads * config.head_dim * model.embed.weight.element_size()


def token_budgets(
    model: Transformer, kv_gb: float | None = None, prefix_gb: float | None = None
) -> tuple[int, int]:
    """Return the tokens for slots and for the prefix cache, the arguments of `Engine`.

    Args:
        kv_gb: memory of both together, in 10^9 bytes. None: half of what is free now.
        prefix_gb: the prefix cache's part of it. None: a quarter.

    Raises:
        UserError: the prefix cache would get all of it, or there is no room for one short prompt.
    """
    whole = 1e9 * kv_gb if kv_gb is not None else free_bytes(model.embed.weight.device) / 2
    prefix = whole / 4 if prefix_gb is None else 1e9 * prefix_gb
    if prefix >= whole:
        raise UserError(f"prefix_gb={prefix / 1e9:g} must be below kv_gb={whole / 1e9:g}")
    size = bytes_per_token(model)
    slots = int((whole - prefix) / size)
    if slots < 256:
        raise UserError(
            f"kv_gb={whole / 1e9:g} leaves room for {slots} tokens of {size:,} bytes; the smallest "
            "request needs 256: set a larger kv_gb"
        )
    return slots, int(prefix / size)


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take on ``device``.

    On Linux that is what the kernel calls available, and in a container no more than its limit
    leaves (memory.max of the control group, version 2).

    Raises:
        UserError: the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        raise UserError("this system does not tell its free memory: set kv_gb") from None
    limit, used = (_number(GROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _number(file: Path) -> int | None:
    """The number in a file of a control group; None: there is no such file, or "max"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
