"""ThroughputCallback: logs tokens per second, MFU, share of data waits, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from lit_llm.data.base import data_rank_and_size
from lit_llm.models.accounting.flops import peak_flops
from lit_llm.training.callbacks.optimizer_steps import first_or_last, is_step_end, logs_now

_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


class ThroughputCallback(L.Callback):
    """Logs the throughput since the last log.

    It logs every ``log_every_n_steps`` optimizer steps, and at the first and the last step:

    - tokens_per_second: over all devices, without the time of validation and sampling;
    - mfu: share of the devices' peak FLOP/s, if the module has ``flops_per_token``;
    - data_wait: share of the time between the end of a batch and the start of the next;
    - memory_gb: peak so far in 1e9 bytes, of the device, or on CPU of the process.

    Clocks are read on the host, and nothing waits for the device. At the end of a logging interval
    values are fetched from the device, so over the interval host time is equal to device time.
    Tokens are the elements of ``batch["input_ids"]``, or of the first tensor in the batch.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up the device's peak FLOP/s, and start the clocks."""
        device = trainer.strategy.root_device
        self.peak, self.peak_source = peak_flops(device, compute_dtype(str(trainer.precision)))
        self._flops_per_token = getattr(pl_module, "flops_per_token", None)
        self._restart()

    def _restart(self) -> None:
        self._tokens, self._waited, self._paused = 0, 0.0, 0.0
        self._since = self._batch_ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add the time of waiting for this batch."""
        self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the tokens of the batch; log at the end of a logged optimizer step."""
        tokens = _first_tensor(batch)
        self._tokens += tokens.numel() if tokens is not None else 0
        regular = logs_now(trainer)
        if is_step_end(trainer, batch_idx) and (regular or first_or_last(trainer)):
            seconds = time.perf_counter() - self._since - self._paused
            rate = self._tokens * data_rank_and_size(trainer.strategy)[1] / seconds
            values = {
                "tokens_per_second": rate,
                "data_wait": self._waited / seconds,
                "memory_gb": peak_memory_bytes(trainer.strategy.root_device) / 1e9,
            }
            if self._flops_per_token is not None:
                values["mfu"] = rate * self._flops_per_token / (self.peak * trainer.world_size)
            pl_module.log_dict(values)
            # Not after the first step, which also counts in the next average.
            if regular:
                self._restart()
        self._batch_ended = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock for the validation."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            now = time.perf_counter()
            self._paused += now - self._validation_began
            self._batch_ended = now


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of the matrix products under a Trainer's ``precision``."""
    return next(
        (dtype for name, dtype in _DTYPES.items() if precision.startswith(name)), torch.float32
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: memory allocated on a CUDA device, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _first_tensor(batch: Any) -> torch.Tensor | None:
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, Mapping):
        batch = [batch["input_ids"]] if "input_ids" in batch else list(batch.values())
    elif not isinstance(batch, (list, tuple)):
        return None
    return next((tensor for part in batch if (tensor := _first_tensor(part)) is not None), None)
