"""LoRA (arXiv:2106.09685): low-rank updates beside frozen linear layers.

A `LoRALinear` is a linear layer whose weight keeps its name, so that checkpoints of the base model
fit before and after. The update is ``scale * x A^T B^T`` with A (rank, in) and B (out, rank). B
starts at zero, so training starts from the base model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.quantize import (
    CODES,
    QuantizedLinear,
    packing_layer,
    restore_weights,
)
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.settings.ranges import Range, check_ranges

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


RANGES: dict[str, Range] = {
    "rank": Range(1, 1e5), "alpha": Range(0, 1e6), "dropout": Range(0, 1, below=True),
}  # fmt: skip
"""Allowed ranges of the numbers in `LoRAConfig`."""


@dataclass
class LoRAConfig:
    """Which layers are adapted, with which rank and scale."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank, or alpha / sqrt(rank) with ``rank_stabilized``."""
    dropout: float = 0.0
    """Dropout on the input of the update during training."""
    targets: tuple[str, ...] = TARGETS
    """Names of the linear layers to adapt. By default all linear layers of the blocks."""
    rank_stabilized: bool = False
    """Use rsLoRA's scale (arXiv:2312.03732)."""

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            self.targets = tuple(self.targets)
        check_types("lora", LoRAConfig, vars(self))
        check_ranges(vars(self), RANGES, "lora.")
        if unknown := set(self.targets) - set(TARGETS):
            raise UserError(
                f"lora.targets: unknown {', '.join(sorted(unknown))}; known are "
                f"{', '.join(TARGETS)}"
            )

    def scale(self, rank: int, alpha: float) -> float:
        """Return the factor of the product B A for an update of this rank."""
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trainable low-rank update: (..., in) -> (..., out)."""

    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank)
    scale: float
    dropout: float
    merged = False  # whether the weight contains the update, see `merge_adapter`

    @classmethod
    def adapt(
        cls,
        linear: nn.Linear,
        config: LoRAConfig,
        rank: int | None = None,
        alpha: float | None = None,
    ) -> LoRALinear:
        """Turn ``linear`` into a LoRALinear in place and return it.

        Hooks, device and references to the layer stay valid. ``rank`` and ``alpha`` default to the
        values of the config.
        """
        weight = linear.weight
        rank = config.rank if rank is None else rank
        linear.__class__ = QuantizedLoRALinear if isinstance(linear, QuantizedLinear) else cls
        assert isinstance(linear, LoRALinear)
        linear.scale = config.scale(rank, config.alpha if alpha is None else alpha)
        linear.dropout = config.dropout
        # float32, because the updates are small and optimizers lose them in half precision.
        options: dict[str, Any] = {"device": weight.device, "dtype": torch.float32}
        linear.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **options))
        linear.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **options))
        if not weight.is_meta:
            linear.reset_update()
        return linear

    @torch.no_grad()
    def reset_update(self) -> None:
        """Set the update to zero, ready for training."""
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in the paper's code and PEFT
        nn.init.zeros_(self.lora_b)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The layer was adapted on the meta device and is now filled from a base model without an
        # update. The update is created here, on the device of the weight.
        if (
            self.lora_a.is_meta
            and f"{prefix}weight" in state_dict
            and f"{prefix}lora_a" not in state_dict
        ):
            device = state_dict[f"{prefix}weight"].device
            self.lora_a, self.lora_b = (
                nn.Parameter(torch.empty_like(p, device=device)) for p in (self.lora_a, self.lora_b)
            )
            self.reset_update()
            state_dict |= {f"{prefix}lora_a": self.lora_a.data, f"{prefix}lora_b": self.lora_b.data}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the layer's output and the update's output."""
        base = self.base_product(x)
        if self.merged:
            return base
        dropped = F.dropout(x, self.dropout, self.training)
        # Under autocast the products cast their inputs themselves.
        if not torch.is_autocast_enabled(x.device.type):
            dropped = dropped.to(self.lora_a.dtype)
        update = F.linear(F.linear(dropped, self.lora_a), self.lora_b)
        return base + self.scale * update.to(base.dtype)

    def base_product(self, x: Tensor) -> Tensor:
        """Return the frozen layer's own output, bias included: (..., in) -> (..., out).

        A layer that stores its weight in another form overrides this and `base_weight`.
        """
        return F.linear(x, self.weight, self.bias)

    def base_weight(self) -> Tensor:
        """Return the frozen weight as the updates were trained beside it: float32 (out, in)."""
        return self.weight.detach().float()

    def update(self) -> Tensor:
        """Return the matrix that the layer adds to its weight: float32 (out, in)."""
        return self.scale * (self.lora_b.detach().float() @ self.lora_a.detach().float())

    def merged_weight(self) -> Tensor:
        """Return the weight with the update included, in the weight's dtype."""
        weight = self.weight.detach()
        return weight if self.merged else (self.base_weight() + self.update()).to(weight.dtype)

    def remove(self) -> None:
        """Turn back into a plain ``nn.Linear`` with the current weight."""
        del self.lora_a, self.lora_b
        self.__dict__.pop("merged", None)
        self.__class__ = (  # type: ignore[assignment]
            QuantizedLinear if isinstance(self, QuantizedLinear) else nn.Linear
        )


class QuantizedLoRALinear(LoRALinear, QuantizedLinear):
    """A `LoRALinear` whose frozen weight is quantised."""

    plain = LoRALinear

    def base_product(self, x: Tensor) -> Tensor:
        """Return the product with the unpacked weight, which is not kept for the backward pass."""
        return QuantizedLinear.forward(self, x)


def apply_lora(model: Transformer, config: LoRAConfig) -> None:
    """Freeze ``model`` and add trainable updates to the target layers, in place.

    Raises:
        UserError: the model has none of the target layers.
    """
    model.requires_grad_(False)
    found = [
        m for name, m in model.layers.named_modules() if name.rsplit(".", 1)[-1] in config.targets
    ]
    if not found:
        raise UserError(f"lora.targets: the model has none of {', '.join(config.targets)}")
    for module in found:
        assert isinstance(module, nn.Linear)
        LoRALinear.adapt(module, config)
    model.lora = config


def merge_lora(model: Transformer) -> None:
    """Fold the updates into the weights permanently, in place.

    The adapted layers become plain linear layers again.
    """
    merge_adapter(model)
    for module in lora_layers(model):
        module.remove()
    model.lora, model.replaced = None, ()


def merge_adapter(model: Transformer) -> None:
    """Fold the updates into the weights, in place, and keep them for `unmerge_adapter`.

    The model then runs at the speed of the base model. Quantised layers become layers that hold
    the unpacked weight: the sum does not fit into 4 bits.
    """
    restore_weights(model)
    for module in lora_layers(model):
        module.weight.data = module.merged_weight()
        module.merged = True


def unmerge_adapter(model: Transformer) -> None:
    """Subtract the updates from the weights again.

    The weights are the base model's, up to the rounding of their dtype.
    """
    for module in lora_layers(model):
        if module.merged:
            module.weight.data = (module.weight.data.float() - module.update()).to(
                module.weight.dtype
            )
            module.merged = False


def lora_layers(model: nn.Module) -> list[LoRALinear]:
    """Return the layers of ``model`` that have updates."""
    return [module for module in model.modules() if isinstance(module, LoRALinear)]


def merged_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of the state dict that ``merge_lora`` would give, one after the other.

    The model itself does not change.
    """
    for name, value in model.state_dict().items():
        if (packed := packing_layer(model, name)) is not None:
            if name.endswith(f".{CODES}"):
                whole = packed.merged_weight() if isinstance(packed, LoRALinear) else packed.weight
                yield f"{name.removesuffix(CODES)}weight", whole
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, LoRALinear) and name.endswith(".weight"):
            yield name, module.merged_weight()
        elif not is_lora(name):
            yield name, value


def is_lora(name: str) -> bool:
    """Whether a name in a state dict belongs to an update."""
    return name.endswith((".lora_a", ".lora_b"))


def lora_from(value: dict[str, Any] | LoRAConfig | None) -> LoRAConfig | None:
    """Build a LoRAConfig from the plain values of a config file.

    Raises:
        UserError: unknown key.
    """
    if value is None or isinstance(value, LoRAConfig):
        return value
    if not isinstance(value, dict):
        raise UserError(f"lora must be a mapping of LoRAConfig's fields, got {value!r}")
    if unknown := set(value) - set(asdict(LoRAConfig())):
        raise UserError(
            f"unknown key lora.{sorted(unknown)[0]}; known are {', '.join(asdict(LoRAConfig()))}"
        )
    return LoRAConfig(**value)
