"""Writes checkpoints in a thread: training waits for a copy in memory, not for the disk."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import Strategy
from torch.utils._pytree import tree_map

from lit_llm.io.atomic import part_of
from lit_llm.models.parallel.sharded_checkpoint import put


class Snapshots(CheckpointIO):
    """A `CheckpointIO` that keeps the checkpoint, or a copy of it on the CPU, in memory.

    It temporarily replaces the strategy's `CheckpointIO`. Tensors of a CUDA device are copied into
    pinned memory asynchronously, with one wait for the device at the end. The buffers are reused
    for the next snapshot. Tensors that share memory also share it in the copy.
    """

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self.taken: Any = None
        self._pinned: dict[int, torch.Tensor] = {}  # by position in the checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Keep ``checkpoint`` or its copy in ``taken``."""
        if not self.copies:
            self.taken = checkpoint
            return
        seen: dict[tuple, torch.Tensor] = {}

        def copied(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return copy.deepcopy(leaf)
            # Tensors with the same memory and layout are copied once.
            key = (leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride())
            if key not in seen:
                seen[key] = self._copy(leaf.detach(), len(seen))
            return seen[key]

        self.taken = tree_map(copied, checkpoint)
        if any(key[0].type == "cuda" for key in seen):
            torch.cuda.synchronize()

    def _copy(self, tensor: torch.Tensor, number: int) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.cpu() if tensor.device.type != "cpu" else tensor.clone()
        buffer = self._pinned.get(number)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._pinned[number] = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=True
            )
        return buffer.copy_(tensor, non_blocking=True)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> Any:
        raise NotImplementedError

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError

    @contextmanager
    def instead_of_files(self, strategy: Strategy) -> Iterator[None]:
        """Within this context, ``strategy`` saves to ``taken`` instead of a file.

        ``taken`` stays None on processes that save nothing.
        """
        own, self.taken = strategy.checkpoint_io, None
        strategy.checkpoint_io = self
        try:
            yield
        finally:
            strategy.checkpoint_io = own


class Writer:
    """Writes one checkpoint at a time in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the thread is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], Any]) -> None:
        """Run ``job`` in a thread."""
        self._result = None

        def run() -> None:
            try:
                self._result = job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="writes a checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread to end, with or without an error."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> Any:
        """Wait for the thread; return the result of the job, or raise its error."""
        self.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result


def write(state: Any, target: Path) -> None:
    """Write the file ``target`` atomically: whole or not at all, also after a power failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        put(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
