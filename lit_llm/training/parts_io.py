"""Checkpoints in parts under Lightning's interface, and what the processes must agree on to finish
one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from lit_llm.io.atomic import part_of
from lit_llm.models.parallel.parts import Divided, commit, discard, read_parts, write_share

T = TypeVar("T")


class PartsIO(TorchCheckpointIO):
    """Lightning's files, and folders of parts beside them: what is `Divided` is written as one, and
    any is read whole.

    All processes of the default group call ``save_checkpoint`` with their share, and wait for each
    other.
    """

    def save_checkpoint(
        self, checkpoint: Any, path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, on disk when this returns."""
        if not isinstance(checkpoint, Divided):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        rank, group = (dist.get_rank(), dist.group.WORLD) if dist.is_initialized() else (0, None)
        finish(partial(write_share, checkpoint, part_of(Path(path)), rank), Path(path), group)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Whole tensors; those of a folder on the CPU."""
        if Path(path).is_dir():
            return read_parts(Path(path), weights_only)
        return super().load_checkpoint(path, map_location, weights_only)


def open_folders(strategy: Strategy) -> None:
    """Have ``strategy`` read and write checkpoints in parts too, where its user has not said what
    it should."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = PartsIO()


def finish(job: Callable[[], dict | None], target: Path, group: Any) -> None:
    """Make the checkpoint ``target`` of what all processes of ``group`` wrote: all call it, and end
    alike.

    Args:
        job: waits for this process's files, and returns what `write_share` says of them; None where
            there are no parts.
        group: None for a process alone.

    Raises:
        Exception: what this process's job met, or an account of what another's did; nothing
            half-written stays.
    """
    part, first = part_of(target), group is None or dist.get_rank(group) == 0
    try:
        files = {
            name: entry
            for written in _together(job, group)
            for name, entry in (written or {}).items()
        }
        if files:
            _together(lambda: commit(part, target, files) if first else None, group)
    except Exception:
        if first and part.exists():
            discard(part)
        raise


def _together(job: Callable[[], T], group: Any) -> list[T]:
    """What ``job`` returns on each process. If it raises on one, all of them raise."""
    result: Any = None
    error: Exception | None = None
    try:
        result = job()
    except Exception as met:
        error = met
    everywhere: list[Any] = [(result, None, "")]
    if group is not None:
        said = "" if error is None else str(error) or type(error).__name__
        everywhere = [None] * dist.get_world_size(group)
        dist.all_gather_object(
            everywhere, (result, getattr(error, "errno", None), said), group=group
        )
    if error is not None:
        raise error
    for rank, (_, number, said) in enumerate(everywhere):
        if said:
            said = f"process {rank}: {said}"
            raise OSError(number, said) if number is not None else RuntimeError(said)
    return [found for found, *_ in everywhere]
