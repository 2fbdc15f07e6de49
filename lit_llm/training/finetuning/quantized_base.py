"""What `SFTModule` checks and says about a quantised base."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from lit_llm.errors import UserError
from lit_llm.models.quantize import quantized_layers


def refuse_quantized(trainer: Any, quantize: str) -> None:
    """Refuse a strategy that shards the model: packed weights cannot be cut.

    Raises:
        UserError: the Trainer's strategy is FSDP2, FSDP, DeepSpeed or tensor parallelism.
    """
    sharding = (ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy)
    if trainer is not None and isinstance(trainer.strategy, sharding):
        raise UserError(
            f"model.quantize={quantize}: weights of 4 or 8 bits cannot be sharded or cut; set "
            "trainer.strategy to ddp or auto, or leave model.quantize out"
        )


def said_of_layers(model: nn.Module) -> str:
    """Return how many layers are quantised, their bytes, and the bytes of all other weights."""
    layers = quantized_layers(model)
    packed = sum(p.nbytes for layer in layers for p in (layer.codes, layer.absmax, layer.scales))
    rest = sum(p.nbytes for p in model.parameters()) - packed
    return (
        f"{len(layers)} linear layers in {packed / 1e6:,.1f} MB; embedding, head, norms, routers "
        f"and stacked experts stay, {rest / 1e6:,.1f} MB"
    )
