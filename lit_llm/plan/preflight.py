"""Preflight: callback that prints the plan of a run before it starts, and refuses a misfit."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import UserError
from lit_llm.models.accounting.hardware import accelerator_of
from lit_llm.models.config import TransformerConfig
from lit_llm.plan.memory import Setup, training_memory
from lit_llm.plan.parallelism import USABLE
from lit_llm.plan.shape import ModelShape, shape_of
from lit_llm.plan.throughput import Job, fitted


class Preflight(L.Callback):
    """Before training, prints the run's size, memory and time, or refuses a run that does not fit.

    The UserError names a setting that would fit. A module's ``activation_checkpointing`` of "auto"
    becomes the smallest share that the device's memory requires.

    The module needs the ``fields`` of a `TransformerConfig`, and the data module must be one of
    lit_llm's. Otherwise the callback does nothing. Time is printed for accelerators in
    `hardware.csv`.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the run, after the data is prepared and before Lightning builds the model."""
        data: Any = getattr(trainer, "datamodule", None)
        fields = getattr(pl_module, "fields", None)
        tokenizer = getattr(data, "tokenizer", None)
        if (
            stage != "fit"
            or not isinstance(fields, dict)
            or tokenizer is None
            or not hasattr(data, "micro_batch_size")
        ):
            return
        config = TransformerConfig.from_dict({"vocab_size": tokenizer.vocab_size, **fields})
        shape = shape_of(config, data.seq_len)
        device = trainer.strategy.root_device
        room = device_memory(device)
        mesh = (
            trainer.strategy.device_mesh
            if isinstance(trainer.strategy, ModelParallelStrategy)
            else None
        )
        data_parallel, tensor_parallel = (1, 1) if mesh is None else mesh.shape
        setup = Setup(
            micro_batch_size=data.micro_batch_size, seq_len=data.seq_len,
            precision="bf16" if "16" in str(trainer.precision) else "fp32",
            optimizer=pl_module.hparams.get("optimizer", "adamw").removeprefix("paged_"),
            lora=getattr(pl_module, "lora", None) is not None, fused_norms=device.type == "cuda",
            quantize=pl_module.hparams.get("quantize"),
            fsdp=data_parallel, tensor_parallel=tensor_parallel,
        )  # fmt: skip
        beside = float(getattr(pl_module, "bytes_beside_base", 0))
        left = None if room is None else room - beside
        share = pl_module.hparams.get("activation_checkpointing", 0.0)
        # The module reads its hyperparameter when it builds the network, which happens later.
        if share == "auto":
            share = least_checkpointing(shape, setup, left)
            pl_module.hparams["activation_checkpointing"] = share
        setup = replace(setup, checkpointed=share)
        need = training_memory(shape, setup).peak + beside
        if room is not None and need > room and not isinstance(trainer.strategy, FSDPStrategy):
            batch_tokens = data.global_batch_tokens
            raise UserError(_refusal(shape, setup, need, room, beside, device, batch_tokens))
        rank_zero_info(f"plan: {_summary(shape, setup, need, room, data, trainer)}")


def least_checkpointing(shape: ModelShape, setup: Setup, room: float | None) -> float:
    """Smallest share of recomputed blocks for which a step leaves a tenth of ``room`` free.

    Args:
        shape: of the model.
        setup: training settings.
        room: bytes of the device's memory; None if unknown.
    """
    for blocks in range(shape.layers):
        share = blocks / shape.layers
        if (
            room is None
            or training_memory(shape, replace(setup, checkpointed=share)).peak <= USABLE * room
        ):
            return share
    return 1.0


def device_memory(device: torch.device) -> float | None:
    """Bytes of memory available to tensors; None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return None


def _refusal(
    shape: ModelShape,
    setup: Setup,
    need: float,
    room: float,
    beside: float,
    device: torch.device,
    batch_tokens: int | None,
) -> str:
    said = f"a step needs about {need / 1e9:.1f} GB, {device} has {room / 1e9:.1f}"
    for size in range(setup.micro_batch_size - 1, 0, -1):
        fewer = replace(setup, micro_batch_size=size)
        divides = batch_tokens is None or batch_tokens % (size * setup.seq_len) == 0
        if divides and training_memory(shape, fewer).peak + beside <= room:
            return f"{said}: set data.micro_batch_size={size} (--plan off to try all the same)"
    return (
        f"{said}, and one sequence does not fit either: "
        "lower data.seq_len or take a smaller model (or --plan off)"
    )


def _summary(
    shape: ModelShape, setup: Setup, need: float, room: float | None, data: Any, trainer: L.Trainer
) -> str:
    device = trainer.strategy.root_device
    parts = [f"{shape.params / 1e6:,.1f}M parameters"]
    tokens = getattr(data, "num_tokens", None)
    flops = None
    if tokens:
        flops = shape.training_flops(tokens, setup.seq_len, setup.lora)
        parts.append(f"{tokens / 1e6:,.1f}M tokens, {flops:.2g} FLOPs")
    again = f", {setup.checkpointed:.0%} of the blocks computed again" if setup.checkpointed else ""
    known = "" if room is None else f" of {room / 1e9:.0f} GB"
    parts.append(f"about {need / 1e9:.1f} GB{known} at the peak{again}")
    chip = accelerator_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if chip is not None and flops is not None:
        model = fitted()
        job = Job(shape.active_params, flops, chip, trainer.world_size, setup.precision)
        hours = model.gpu_hours(job)
        low, high = (hours / trainer.world_size * math.exp(side * model.spread) for side in (-1, 1))
        cost = "" if chip.usd is None else f", ${hours * chip.usd:,.2f} at ${chip.usd:g} a GPU-hour"
        parts.append(f"{low:.2g} to {high:.2g} hours on {trainer.world_size} x {chip.name}{cost}")
    return "; ".join(parts)
