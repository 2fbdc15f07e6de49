"""Processes of tests, forked from a server that has imported what takes long.

Torch, Lightning and lit_llm are imported once for all tests of a pytest process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

SERVER = multiprocessing.get_context("forkserver")
# The last three are imported by lit_llm when first needed.
SERVER.set_forkserver_preload(
    ["lit_llm.fit.command", "litdata", "safetensors.torch", "torch.utils.tensorboard"]
)


def run_processes(function: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """Run ``function(rank, *arguments)`` in ``number`` processes; raise what one of them raises."""
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        function, arguments, nprocs=number, start_method="forkserver"
    )
