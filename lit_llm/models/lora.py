"""LoRA (arXiv:2106.09685): low-rank updates beside frozen linear layers.

`LoRAConfig` names the layers, and what else is trained. A `LoRALinear` is a linear layer whose
weight keeps its name, so that checkpoints of the base model fit before and after. The update is
``scale * x A^T B^T`` with A (rank, in) and B (out, rank). B starts at zero, so training starts from
the base model. With DoRA the rows of the updated weight also have trained lengths, see `dora`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.dora import row_norms, scale_rows
from lit_llm.models.lora_config import TARGETS, LoRAConfig, first_match
from lit_llm.models.quantize import CODES, QuantizedLinear, packing_layer, restore_weights
from lit_llm.models.token_rows import ROWS, TokenRows, row_layers, train_rows
from lit_llm.models.transformer import Transformer


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trainable low-rank update: (..., in) -> (..., out)."""

    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank)
    lora_magnitude: nn.Parameter | None  # (out,), see `dora`
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
        linear.register_parameter(
            "lora_magnitude",
            nn.Parameter(torch.empty(linear.out_features, **options)) if config.dora else None,
        )
        if not weight.is_meta:
            linear.reset_update()
        return linear

    @torch.no_grad()
    def reset_update(self) -> None:
        """Set the update to zero, ready for training."""
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in the paper's code and PEFT
        nn.init.zeros_(self.lora_b)
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(torch.linalg.vector_norm(self.base_weight(), dim=1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The layer was adapted on the meta device and is now filled from a base model without an
        # update. The update is created here, on the device of the weight.
        weight: Tensor | None = None
        if self.lora_a.is_meta and f"{prefix}lora_a" not in state_dict:
            weight = state_dict.get(f"{prefix}weight")
        if weight is not None:
            for name, parameter in list(self._updates()):
                empty = nn.Parameter(torch.empty_like(parameter, device=weight.device))
                setattr(self, name, empty)
                state_dict[f"{prefix}{name}"] = empty.data
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:
            self.reset_update()

    def _updates(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters(recurse=False) if is_lora(name))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with the update's share."""
        base = self.base_product(x)
        if self.merged:
            return base
        dropped = F.dropout(x, self.dropout, self.training)
        kept = dropped
        # Under autocast the products cast their inputs themselves.
        if not torch.is_autocast_enabled(x.device.type):
            dropped = dropped.to(self.lora_a.dtype)
        update = F.linear(F.linear(dropped, self.lora_a), self.lora_b)
        update = self.scale * update.to(base.dtype)
        if self.lora_magnitude is None:
            return base + update
        # In PEFT the input's dropout also changes what the magnitudes scale, which is the whole
        # output but for the bias; the base's own output is added without dropout.
        whole = self.base_product(kept) if self.training and self.dropout else base
        product = whole if self.bias is None else whole - self.bias.to(whole.dtype)
        ratio = self.lora_magnitude / self._norms()
        return (ratio * (product + update) + (base - product)).to(base.dtype)

    def base_product(self, x: Tensor) -> Tensor:
        """Return the frozen layer's own output, bias included: (..., in) -> (..., out).

        A layer that stores its weight in another form overrides this and `base_weight`.
        """
        return F.linear(x, self.weight, self.bias)

    def base_weight(self) -> Tensor:
        """Return the frozen weight as the updates were trained beside it: float32 (out, in)."""
        return self.weight.detach().float()

    def _norms(self) -> Tensor:
        """Norms of the rows of weight and update together, without a gradient: float32 (out,)."""
        return row_norms(self.base_weight(), self.lora_a, self.lora_b, self.scale)

    def update(self) -> Tensor:
        """Return the product that is added to the weight: float32 (out, in)."""
        return self.scale * (self.lora_b.detach().float() @ self.lora_a.detach().float())

    def change(self) -> Tensor:
        """Return the difference that the update makes to the frozen weight: float32 (out, in)."""
        update = self.update()
        if self.lora_magnitude is None:
            return update
        base = self.base_weight()
        return scale_rows(base + update, self.lora_magnitude.detach()) - base

    def merged_weight(self) -> Tensor:
        """Return the weight with the update included, in the weight's dtype."""
        weight = self.weight.detach()
        if self.merged:
            return weight
        whole = self.base_weight() + self.update()
        if self.lora_magnitude is not None:
            whole = scale_rows(whole, self.lora_magnitude.detach())
        return whole.to(weight.dtype)

    def merge(self) -> None:
        """Fold the update into the weight, in place."""
        if self.lora_magnitude is not None and not self.merged:
            self._merged_norms = self._norms()  # the merged weight no longer has them
        self.weight.data, self.merged = self.merged_weight(), True

    def unmerge(self) -> None:
        """Take the update out of the weight again; the rest is exact up to the dtype's rounding."""
        whole = self.weight.data.float()
        if self.lora_magnitude is not None:
            whole = scale_rows(whole, self._merged_norms)
        self.weight.data = (whole - self.update()).to(self.weight.dtype)
        self.merged = False

    def remove(self) -> None:
        """Turn back into a plain ``nn.Linear`` with the current weight."""
        del self.lora_a, self.lora_b, self.lora_magnitude
        for name in ("merged", "_merged_norms"):
            self.__dict__.pop(name, None)
        quantized = isinstance(self, QuantizedLinear)
        self.__class__ = QuantizedLinear if quantized else nn.Linear  # type: ignore[assignment]


class QuantizedLoRALinear(LoRALinear, QuantizedLinear):
    """A `LoRALinear` whose frozen weight is quantised."""

    plain = LoRALinear

    def base_product(self, x: Tensor) -> Tensor:
        """Return the product with the unpacked weight, which is not kept for the backward pass."""
        return QuantizedLinear.forward(self, x)


def apply_lora(model: Transformer, config: LoRAConfig, token_ids: Iterable[int] = ()) -> None:
    """Freeze ``model`` and add trainable updates to the target layers, in place.

    The modules of ``train_modules`` train whole. They become float32, because an optimizer loses
    small steps in half precision. Of embedding and head the rows ``token_ids`` train, see
    `LoRAConfig.train_tokens`; a matrix that trains whole needs no such rows.

    Raises:
        UserError: the model has none of the target layers, or a pattern matches no layer.
    """
    model.requires_grad_(False)
    linear = {
        name: module
        for name, module in model.named_modules()
        if name.startswith("layers.") and name.rpartition(".")[2] in TARGETS
    }
    found = {name: module for name, module in linear.items() if config.adapts(name)}
    if not found:
        raise UserError(
            f"lora.targets: {config.targets!r} is none of the model's layers, which are named as "
            f"{', '.join(list(linear)[:2])}; without lora.targets all of them are adapted"
        )
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            if not any(first_match({pattern: True}, name, False) for name in found):
                raise UserError(
                    f"lora.{field}: {pattern!r} matches none of the adapted layers, which are "
                    f"named as {', '.join(list(found)[:2])}"
                )
    for name, module in found.items():
        assert isinstance(module, nn.Linear)
        LoRALinear.adapt(module, config, config.rank_of(name), config.alpha_of(name))
    model.lora = config
    model.base_dtype = model.embed.weight.dtype
    for _, weight in trained_whole(model):
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    if token_ids := tuple(token_ids):
        for name in ("embed", "head"):
            if not config.trains_whole(f"{name}.weight", model.config.tie_embeddings):
                put_rows(model, name, token_ids).requires_grad_(config.train_tokens != "none")


def put_rows(model: Transformer, name: str, ids: Iterable[int]) -> nn.Parameter:
    """Let "embed" or "head" have trained rows at ``ids``, in place; a tied head shares them."""
    layer = train_rows(model.get_submodule(name), ids)
    other = model.embed
    if name == "head" and model.config.tie_embeddings and isinstance(other, TokenRows):
        layer.added_rows = other.added_rows
    return layer.added_rows


def trained_whole(model: Transformer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that `LoRAConfig.train_modules` trains as a whole, each once."""
    if model.lora is not None:
        for name, weight in model.named_parameters():
            if model.lora.trains_whole(name, model.config.tie_embeddings):
                yield name, weight


def is_trained(model: Transformer, name: str) -> bool:
    """Whether a name in the state dict of an adapted model belongs to what is trained."""
    return is_lora(name) or (
        model.lora is not None and model.lora.trains_whole(name, model.config.tie_embeddings)
    )


def merge_lora(model: Transformer) -> None:
    """Fold the updates into the weights permanently, in place.

    The adapted layers become plain linear layers again.
    """
    merge_adapter(model)
    for module in trained_layers(model):
        module.remove()
    for _, weight in trained_whole(model):
        weight.data = weight.data.to(model.base_dtype)
    model.lora, model.replaced = None, ()


def merge_adapter(model: Transformer) -> None:
    """Fold the updates into the weights, in place, and keep them for `unmerge_adapter`.

    The model then runs at the speed of the base model. Quantised layers become layers that hold
    the unpacked weight: the sum does not fit into 4 bits.
    """
    restore_weights(model)
    for module in trained_layers(model):
        module.merge()


def unmerge_adapter(model: Transformer) -> None:
    """Take the updates out of the weights again.

    The weights are the base model's, up to the rounding of their dtype.
    """
    for module in trained_layers(model):
        if module.merged:
            module.unmerge()


@contextmanager
def without_updates(model: nn.Module) -> Iterator[None]:
    """Let the model compute as its base inside the context; modules trained whole stay trained."""
    layers = [layer for layer in trained_layers(model) if not layer.merged]
    for layer in layers:
        layer.merged = True
    try:
        yield
    finally:
        for layer in layers:
            layer.merged = False


def lora_layers(model: nn.Module) -> list[LoRALinear]:
    """Return the layers of ``model`` that have updates."""
    return [module for module in model.modules() if isinstance(module, LoRALinear)]


def trained_layers(model: nn.Module) -> list[LoRALinear | TokenRows]:
    """Return the layers of ``model`` that have updates or train rows."""
    return [*lora_layers(model), *row_layers(model)]


def merged_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of the state dict that ``merge_lora`` would give, one after the other.

    The model itself does not change.
    """
    for name, value in model.state_dict().items():
        if (packed := packing_layer(model, name)) is not None:
            if name.endswith(f".{CODES}"):
                merged = packed.merged_weight() if isinstance(packed, LoRALinear) else packed.weight
                yield f"{name.removesuffix(CODES)}weight", merged
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, LoRALinear | TokenRows) and name.endswith(".weight"):
            yield name, module.merged_weight()
        elif not is_lora(name):
            whole = is_trained(model, name) and model.base_dtype is not None
            yield name, value.to(model.base_dtype) if whole else value


def is_lora(name: str) -> bool:
    """Whether a name in a state dict belongs to an update, or to rows of added tokens."""
    return name.endswith(("lora_a", "lora_b", "lora_magnitude", ROWS))
