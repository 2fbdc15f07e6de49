"""Add the updates of adapters to the weights of their base.

Updates are added as matrices, in float32, and the sum is rounded once. The factors A and B of two
adapters cannot be added: (A1 + A2)(B1 + B2) has products that neither adapter has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.adapter_config import AdapterConfig
from lit_llm.models.hub.adapter_reader import Adapter, read_adapter
from lit_llm.models.hub.adapters import adapt
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.transformer import Transformer


@dataclass(frozen=True)
class Part:
    """An adapter's folder and the weight of its updates in the sum."""

    folder: Path
    weight: float = 1.0


def base_of(parts: list[Part], path: str | None = None, original: bool = False) -> AdapterBase:
    """Return the one base of all adapters.

    Args:
        parts: the adapters.
        path: of the base. None: as the adapters name it.
        original: the updates are added to the original weights, whatever was quantised.

    Raises:
        UserError: they have different bases, or name none.
    """
    found = {part.folder: AdapterBase.read(part.folder) for part in parts}
    known = {folder: base for folder, base in found.items() if base is not None}
    for folder, base in known.items():
        first, other = next(iter(known.items()))
        if base.digest != other.digest:
            raise UserError(
                f"{folder}: was trained beside another base ({base.init_from}) than {first} "
                f"({other.init_from}); their updates cannot be added"
            )
        if base.quantize != other.quantize and not original:
            raise UserError(
                f"{folder}: was trained beside a base with quantize={base.quantize}, {first} with "
                f"quantize={other.quantize}: add both to the original weights, --onto original"
            )
    if known:
        base = next(iter(known.values()))
        return base if path is None else AdapterBase(path, base.digest, base.dtype, base.quantize)
    named = path or AdapterConfig.read(parts[0].folder / "adapter_config.json").base
    if not named:
        raise UserError(f"{parts[0].folder}: names no base; give it with --base")
    return AdapterBase(named, "", "")


def load_base(base: AdapterBase, dtype: torch.dtype | None, original: bool) -> Transformer:
    """Load a base as its adapters were trained beside it, or with its ``original`` weights.

    Args:
        base: what to load.
        dtype: of the weights. None: as in training, else the file's.
        original: leave a quantised base unquantised.

    Raises:
        UserError: there is no such model, or it has other weights than in training.
    """
    if dtype is None and base.dtype:
        dtype = getattr(torch, base.dtype)
    if base.quantize is not None and not original:
        model, found = load_quantized(base.init_from, base.quantize, dtype or torch.float32)
    else:
        model = Transformer.from_pretrained(base.init_from, dtype)
        found = digest(model.state_dict().items())
    if base.digest and found != base.digest:
        raise UserError(
            f"{base.init_from}: its weights are not those beside which the adapter was trained; "
            "give that base with --base"
        )
    return model.eval()


@torch.no_grad()
def add_updates(model: Transformer, parts: Iterable[Part]) -> None:
    """Add the weighted sum of the adapters' updates to the weights of ``model``, in place.

    Of modules and rows that an adapter replaces as a whole, the difference to the base is added.
    New tokens get rows.

    Raises:
        UserError: as `read_adapter`.
    """
    adapters = [(read_adapter(model, part.folder), part.weight) for part in parts]
    if any(adapter.untied for adapter, _ in adapters):
        model.untie()
    size = max(adapter.vocab_size or 0 for adapter, _ in adapters)
    add_token_rows(model, range(model.config.vocab_size, size))
    for name in dict.fromkeys(name for adapter, _ in adapters for name in adapter.updates):
        linear = model.get_submodule(name)
        total: Tensor | float = 0.0
        for adapter, weight in adapters:
            if name in adapter.updates:
                total = total + weight * _change(model, adapter, name)
        assert isinstance(linear, nn.Linear)
        _add(linear.weight, total)
    for name in dict.fromkeys(name for adapter, _ in adapters for name in adapter.weights):
        base = model.get_parameter(name)
        total = 0.0
        for adapter, weight in adapters:
            if name in adapter.weights:
                total = total + weight * (adapter.weights[name].float() - base.float())
        _add(base, total)
    for name in dict.fromkeys(name for adapter, _ in adapters for name in adapter.rows):
        base = model.get_parameter(f"{name}.weight")
        total = torch.zeros_like(base, dtype=torch.float32)
        for adapter, weight in adapters:
            if name in adapter.rows:
                ids, values = adapter.rows[name]
                total[ids] += weight * (values - base[ids].float())
        _add(base, total)


def _change(model: Transformer, adapter: Adapter, name: str) -> Tensor:
    layer = adapt(model, adapter, name)
    change = layer.change()
    layer.remove()
    return change


def _add(weight: Tensor, change: Tensor | float) -> None:
    weight.data = (weight.data.float() + change).to(weight.dtype)


def vocabulary_with(model: Transformer, parts: Iterable[Part]) -> int:
    """Return the rows of embedding and head that ``model`` has after `add_updates`."""
    sizes = [read_adapter(model, part.folder).vocab_size or 0 for part in parts]
    return max(model.config.vocab_size, *sizes)


@torch.no_grad()
def move_towards(model: Transformer, base: Transformer, share: float) -> None:
    """Set the weights of ``model`` to ``base + share * (model - base)``, in place.

    Of tokens that the base lacks, the line begins at the mean of its rows, as training did.

    Raises:
        UserError: the two have different tensors.
    """
    add_token_rows(base, range(base.config.vocab_size, model.config.vocab_size))
    ours, theirs = model.state_dict(), base.state_dict()
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        raise UserError(
            "the run's model and its base have other tensors; --with_base needs the same"
        )
    for name, weight in ours.items():
        start = theirs[name].float()
        weight.copy_(start + share * (weight.float() - start))
