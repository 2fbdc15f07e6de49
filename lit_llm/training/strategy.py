"""FSDP2Strategy: shards weights, gradients and optimizer states over processes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lit_llm.errors import UserError
from lit_llm.lightning_internals import mesh_sizes, set_data_parallel_size
from lit_llm.models.kernels.cpu_threads import limit_threads
from lit_llm.models.parallel.parallelize import gradient_sync
from lit_llm.models.parallel.sharded import copy_part, divide, like_part, whole_state_dict
from lit_llm.models.parallel.sharded_checkpoint import Stored, open_shards
from lit_llm.training.sharded_checkpoint_io import open_folders


class FSDP2Strategy(ModelParallelStrategy):
    """Sharded data parallelism (FSDP2), optionally combined with tensor parallelism.

    ``trainer.strategy: fsdp2`` selects this strategy with its defaults. It works with every
    LightningModule whose ``configure_model`` shards by ``self.device_mesh``, as the modules of
    lit_llm do (see `parallelize`). There are three differences from Lightning's
    `ModelParallelStrategy`:

    - all devices are data parallel by default;
    - gradients are reduced once per optimizer step;
    - a run may continue from any checkpoint with another number of processes, with another mesh, or
      as a single process.

    Args:
        data_parallel_size: number of processes that the batch is divided among. "auto": the number
            of processes divided by ``tensor_parallel_size``.
        tensor_parallel_size: number of neighbouring processes that share each matrix; they must be
            on one node.
        checkpoint: "sharded": a folder to which each process writes its own shards (see
            `lit_llm.models.parallel.sharded_checkpoint`), on a file system that all processes
            share. "whole": the file that a single process would write. The first process gathers
            it, which takes the memory of all weights and states on its CPU, while the others wait.
            "parts": the former name of "sharded", for one release.

    Raises:
        UserError: the product of the sizes is not the number of processes.
    """

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int = 1,
        checkpoint: Literal["sharded", "whole", "parts"] = "sharded",
        **kwargs: Any,
    ) -> None:
        if checkpoint == "parts":
            rank_zero_warn("trainer.strategy: checkpoint=parts is called sharded now")
            checkpoint = "sharded"
        if checkpoint not in ("sharded", "whole"):
            raise UserError(
                f"trainer.strategy: checkpoint={checkpoint} is neither sharded nor whole"
            )
        super().__init__(
            data_parallel_size, tensor_parallel_size, save_distributed_checkpoint=False, **kwargs
        )
        self._sharded = checkpoint == "sharded"

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning loads the optimizer's state, through `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Start the process group and create the device mesh."""
        assert self.cluster_environment is not None
        world, (data, tensor) = self.num_nodes * self.num_processes, mesh_sizes(self)
        tensor = int(tensor)
        if data == "auto" and tensor >= 1:
            data = max(1, world // tensor)
            set_data_parallel_size(self, data)
        if int(data) * tensor != world:
            raise UserError(
                f"trainer.strategy: data_parallel_size={data} times "
                f"tensor_parallel_size={tensor} is not the number of processes, {world}"
            )
        super().setup_environment()
        limit_threads(divide=True)
        open_folders(self)

    @contextmanager
    def block_backward_sync(self) -> Generator:
        """Accumulate gradients without reducing them over processes.

        Lightning enters it for all micro-batches of an optimizer step except the last.
        """
        assert self.model is not None
        gradient_sync(self.model, False)
        try:
            yield
        finally:
            gradient_sync(self.model, True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights to save.

        For sharded checkpoints these are DTensors. Otherwise the first process gets whole tensors,
        and the other processes get nothing.
        """
        assert self.model is not None
        state = self.model.state_dict()
        return state if self._sharded else whole_state_dict(state.items(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state to save, as `lightning_module_state_dict` does for the weights.

        Parameters have the numbers that the optimizer itself gives them.
        """
        inner: Any = optimizer
        if isinstance(inner, LightningOptimizer):
            inner = inner.optimizer
        state = inner.state_dict()
        if self._sharded:
            return state
        keep = self.is_global_zero
        whole = {
            number: whole_state_dict(values.items(), keep)
            for number, values in state["state"].items()
        }
        return {"state": whole, "param_groups": state["param_groups"]} if keep else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Pass the checkpoint to the `CheckpointIO`.

        For sharded checkpoints every process passes its own share. Otherwise only the first
        process passes the whole checkpoint.
        """
        share: Any = divide(checkpoint, self.is_global_zero) if self._sharded else checkpoint
        if self._sharded or self.is_global_zero:
            self.checkpoint_io.save_checkpoint(share, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Memory-map the files, so that each process reads only what it needs.

        All processes must call this. The path of the first process is used.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return open_shards(path, weights_only)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this process's part of every weight.

        Raises:
            KeyError: with ``strict``, the checkpoint lacks a weight.
        """
        assert self.lightning_module is not None
        saved = checkpoint["state_dict"]
        for name, tensor in self.lightning_module.state_dict().items():
            if strict or name in saved:
                copy_part(tensor, saved[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Copy this process's part of every tensor in the optimizers' states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {
                    key: like_part(params[number], value)
                    if isinstance(value, torch.Tensor | Stored)
                    else value
                    for key, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether the model is sharded, so that all processes must run every forward pass."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
