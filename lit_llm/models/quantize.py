"""Linear layers whose frozen weight has 4 or 8 bits, for finetuning beside it (QLoRA).

A `QuantizedLinear` holds its weight as three frozen parameters of integers; see `Packed`. They are
parameters and no buffers because data parallelism sends buffers before each forward pass.

The products have the dtype that those of ``nn.Linear`` would have: autocast's, else that of the
input. Under ``bf16-mixed`` this is bfloat16, as in QLoRA. Under ``32-true`` it is float32, which
CPUs without bfloat16 instructions multiply faster, and which lets tests compare exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.kernels.quantized import Format, Packed, quantized_product, shapes, unpack

if TYPE_CHECKING:
    from lit_llm.models.transformer import Transformer

CODES = "codes"
PARTS = frozenset(Packed._fields)
"""Last parts of the names of a quantised layer's parameters."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a weight of 4 or 8 bits: (..., in) -> (..., out)."""

    plain: type[nn.Linear] = nn.Linear  # what `restore` makes of it
    codes: nn.Parameter
    absmax: nn.Parameter
    scales: nn.Parameter
    format: Format
    weight_dtype: torch.dtype

    @classmethod
    def convert(cls, linear: nn.Linear, format: Format, dtype: torch.dtype) -> QuantizedLinear:
        """Turn a layer on the meta device into a QuantizedLinear, in place, and return it.

        ``dtype`` is that of the unpacked `weight`. Loading fills the parameters with what `pack`
        returns.
        """
        assert linear.weight.is_meta
        packed = shapes(linear.out_features, linear.in_features, format)
        del linear.weight
        linear.__class__ = cls
        assert isinstance(linear, QuantizedLinear)
        for name, tensor in zip(Packed._fields, packed, strict=True):
            linear.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        if linear.bias is not None:
            linear.bias.requires_grad_(False)
        linear.format, linear.weight_dtype = format, dtype
        return linear

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as it is multiplied: a new tensor (out, in), without a gradient."""
        packed = Packed(self.codes.detach(), self.absmax.detach(), self.scales.detach())
        return unpack(packed, self.format, self.out_features, self.weight_dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), see the head of this file for the dtype."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return quantized_product(
            input, self.codes, self.absmax, self.scales, bias,
            self.format, self.out_features, self.out_features, False,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        # ``module.to(dtype)`` leaves the integers alone. The dtype of the unpacked weight follows.
        super()._apply(fn, recurse)
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype)).dtype
        return self

    def restore(self) -> None:
        """Turn back into a layer that holds the unpacked weight, in place."""
        weight = self.weight
        for name in Packed._fields:
            delattr(self, name)
        del self.format, self.weight_dtype
        self.__class__ = self.plain  # type: ignore[assignment]
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def quantize_on_meta(model: Transformer, format: Format, dtype: torch.dtype) -> list[str]:
    """Turn the linear layers of the blocks of a model on the meta device into `QuantizedLinear`.

    Embedding, head, norms, routers and stacked experts stay as they are.

    Returns:
        Names of the weights that loading has to pack.

    Raises:
        UserError: a layer has an odd number of weights, which 4 bits cannot hold in bytes.
    """
    names = []
    for name, module in model.named_modules():
        # A router decides by small differences. Subclasses compute something else.
        if not name.startswith("layers.") or type(module) is not nn.Linear:
            continue
        if name.endswith(".router"):
            continue
        if format != "int8" and module.in_features * module.out_features % 2:
            raise UserError(
                f"model.quantize={format}: {name} is {module.out_features} x {module.in_features}, "
                "an odd number of weights; take int8"
            )
        QuantizedLinear.convert(module, format, dtype)
        names.append(f"{name}.weight")
    return names


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """Return the quantised layers of ``model``."""
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]


def restore_weights(model: nn.Module) -> None:
    """Turn all quantised layers of ``model`` into layers with the unpacked weights, in place."""
    for layer in quantized_layers(model):
        layer.restore()


def unpacked_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the names and shapes of the state dict that the model had without quantisation."""
    found: dict[str, torch.Size] = {}
    for name, tensor in model.state_dict().items():
        if (layer := packing_layer(model, name)) is None:
            found[name] = tensor.shape
        elif name.endswith(f".{CODES}"):
            weight = torch.Size((layer.out_features, layer.in_features))
            found[f"{name.removesuffix(CODES)}weight"] = weight
    return found


def packing_layer(model: nn.Module, name: str) -> QuantizedLinear | None:
    """Return the quantised layer of whose weight the state dict's ``name`` is a part, or None."""
    owner, _, last = name.rpartition(".")
    module: Any = model.get_submodule(owner) if last in PARTS else None
    return module if isinstance(module, QuantizedLinear) else None
