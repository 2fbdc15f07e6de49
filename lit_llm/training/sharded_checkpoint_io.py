"""CheckpointIO for sharded checkpoints, and the agreement of all processes to finish one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from lit_llm.io.atomic import part_of
from lit_llm.models.parallel.sharded_checkpoint import (
    Divided,
    commit,
    discard,
    read_shards,
    write_share,
)

T = TypeVar("T")


class PartsIO(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoint files, and folders of shards.

    A `Divided` checkpoint is written as a folder of shards. A folder is read as whole tensors. All
    processes of the default group must call ``save_checkpoint`` with their shares; they wait for
    each other.
    """

    def save_checkpoint(
        self, checkpoint: Any, path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint. It is on disk when this returns."""
        if not isinstance(checkpoint, Divided):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        rank, group = (dist.get_rank(), dist.group.WORLD) if dist.is_initialized() else (0, None)
        finish(partial(write_share, checkpoint, part_of(Path(path)), rank), Path(path), group)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with whole tensors; those of a folder are on the CPU."""
        if Path(path).is_dir():
            return read_shards(Path(path), weights_only)
        return super().load_checkpoint(path, map_location, weights_only)


def open_folders(strategy: Strategy) -> None:
    """Let ``strategy`` also read and write sharded checkpoints.

    A `CheckpointIO` that the user chose stays.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = PartsIO()


def finish(job: Callable[[], dict | None], target: Path, group: Any) -> None:
    """Complete the checkpoint ``target`` from the files that all processes of ``group`` wrote.

    All processes must call this. Either all of them succeed, or all of them raise.

    Args:
        job: waits for this process's files, and returns the result of `write_share`; None if the
            checkpoint is not sharded.
        target: path of the complete checkpoint.
        group: None for a single process.

    Raises:
        Exception: the error of this process's job, or a description of another process's error. No
            unfinished file remains.
    """
    part, first = part_of(target), group is None or dist.get_rank(group) == 0
    try:
        files = {
            name: entry
            for written in _on_all_processes(job, group)
            for name, entry in (written or {}).items()
        }
        if files:
            _on_all_processes(lambda: commit(part, target, files) if first else None, group)
    except Exception:
        if first and part.exists():
            discard(part)
        raise


def _on_all_processes(job: Callable[[], T], group: Any) -> list[T]:
    """The results of ``job`` on all processes. If it raises on one process, all of them raise."""
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
