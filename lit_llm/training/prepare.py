"""Chooses the arguments of `parallelize` from a module's settings and the Trainer's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lit_llm.errors import UserError
from lit_llm.models.kernels import cpu_threads
from lit_llm.models.kernels.backends import BLOCKS, Backends, choose_attention
from lit_llm.models.kernels.device import can_compile, has_float8
from lit_llm.models.parallel.parallelize import DATA, parallelize, shard
from lit_llm.models.transformer import Transformer
from lit_llm.training.callbacks.throughput import compute_dtype


def prepare(
    model: nn.Module,
    settings: Mapping[str, Any],
    trainer: L.Trainer | None,
    mesh: DeviceMesh | None,
    horizon: Callable[[], int],
) -> None:
    """Prepare ``model`` in place for training or evaluation on this machine.

    A network other than lit_llm's `Transformer` is only sharded.

    Args:
        model: the built network.
        settings: ``float8``, ``compile``, ``activation_checkpointing`` and ``attention`` of
            `LanguageModule`.
        trainer: the Trainer. If it is None or does not train, the model stays as it was built.
        mesh: see `parallelize`.
        horizon: returns the optimizer steps of the run. It is called only to decide whether
            compiling is worth its time.

    Raises:
        UserError: the machine or the precision does not support a setting.
    """
    cpu_threads.limit_threads(divide=True)
    training = trainer if trainer is not None and trainer.training else None
    dtype = torch.bfloat16 if trainer is not None and trainer.precision == "bf16-mixed" else None
    float8 = training is not None and _wants_float8(model, settings["float8"], training)
    if not isinstance(model, Transformer):
        if mesh is not None:
            shard(model, [], mesh[DATA], dtype)
        return
    compile = training is not None and _wants_compile(settings["compile"], training, horizon)
    if compile:
        rank_zero_info("compiling the model for this machine: the first step takes up to a minute")
    elif float8:
        rank_zero_warn(
            "model.float8 without model.compile is slower than bfloat16: casts are not fused"
        )
    # For evaluation no block is wrapped, so that the model can later be prepared for training.
    wanted = settings["activation_checkpointing"] if training is not None else 0.0
    checkpointed = 0.0 if wanted == "auto" else wanted
    if training is not None and training.strategy.root_device.type == "cpu":
        _report_spinning_threads()
    backends = BLOCKS if training is None else _choose_attention(settings["attention"], training)
    parallelize(
        model,
        float8=float8,
        backends=backends,
        compile=compile,
        activation_checkpointing=checkpointed,
        mesh=mesh,
        dtype=dtype,
    )


def _report_spinning_threads() -> None:
    """Print a hint if OpenMP's threads wait by spinning, which slows other programs down."""
    if not cpu_threads.waits_as_set:
        rank_zero_info(
            "OpenMP was loaded before lit_llm, so its threads wait by spinning: where other "
            "programs use this machine too, import lit_llm before torch, or start with "
            f"GOMP_SPINCOUNT={cpu_threads.SPINS} in the environment"
        )


def _choose_attention(wanted: Any, trainer: L.Trainer) -> Backends:
    dtype = compute_dtype(str(trainer.precision))
    backends = choose_attention(trainer.strategy.root_device, dtype, wanted)
    rank_zero_info(f"attention: {backends}")
    return backends


def _wants_compile(wanted: Any, trainer: L.Trainer, horizon: Callable[[], int]) -> bool:
    if not wanted:
        return False
    possible = can_compile(trainer.strategy.root_device)
    if wanted is True and not possible:
        raise UserError(
            "model.compile=true needs a C++ compiler (g++ or clang++) on CPU, Triton on CUDA; set "
            "it to auto"
        )
    # The horizon decides, not max_steps: a run that stops early and is resumed must not change its
    # kernels. Compiling takes about as long as 200 small steps.
    return wanted is True or (possible and horizon() >= 200)


def _wants_float8(model: nn.Module, wanted: bool, trainer: L.Trainer) -> bool:
    if not wanted:
        return False
    if trainer.precision != "bf16-mixed":
        raise UserError(f"model.float8 needs trainer.precision=bf16-mixed, not {trainer.precision}")
    if not has_float8(trainer.strategy.root_device):
        raise UserError(
            "model.float8: this device has no products of 8-bit floats; set it to false"
        )
    if not isinstance(model, Transformer):
        raise UserError(
            f"model.float8: a {type(model).__name__} has no blocks to turn; set it to false"
        )
    return True
