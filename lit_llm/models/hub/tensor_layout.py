"""Map tensors of a Hugging Face directory to lit_llm's tensors.

A tensor of the directory can hold several tensors (fused) or one member of a stacked tensor. It can
also be transposed or have another RoPE layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.families import COMMON_TENSORS, FAMILIES, Family


def _hf_name(ours: str, family: Family) -> str:
    """Return Hugging Face's name of lit_llm's tensor or module ``ours``.

    {n} in the result counts the members of a stacked tensor.
    """
    parts = ours.split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *parts[2:]]) if layer else ours
    table = (
        COMMON_TENSORS
        | family.tensors
        | {part: whole for whole, held in family.fused.items() for part in held}
    )
    # The longest prefix wins, so that a family renames one projection and keeps the rest.
    prefix = max((p for p in table if generic == p or generic.startswith(p + ".")), key=len)
    return (table[prefix] + generic[len(prefix) :]).replace("{i}", layer)


def _change_rope_layout(
    name: str, tensor: Tensor, config: TransformerConfig, family: Family, *, back: bool
) -> Tensor:
    """Convert the rows of tensor ``name`` from the family's RoPE layout to lit_llm's.

    ``back`` converts in the other direction.
    """
    if family.rope_layout == "halves" or not re.search(r"\.[qk]_(proj|norm)\.", name):
        return tensor
    assert config.head_dim is not None
    half = config.head_dim // 2
    rows = tensor.flatten(0, 1) if "_norm." in name and tensor.ndim == 2 else tensor
    if family.rope_layout == "reversed":
        # With the halves exchanged, pairs rotate by theta instead of -theta.
        moved = rows.unflatten(0, (-1, 2, half)).flip(1)
    elif back:
        moved = rows.unflatten(0, (-1, 2, half)).transpose(1, 2)
    else:
        moved = rows.unflatten(0, (-1, half, 2)).transpose(1, 2)
    return moved.reshape(tensor.shape)


@dataclass
class Slot:
    """The content of one tensor in a file.

    It holds the rows of one or several of lit_llm's tensors ``ours``, or one member of a stack.
    """

    ours: list[str]
    member: int | None = None


class Layout:
    """The tensors of a directory of one family, and how each is built from lit_llm's tensors.

    Args:
        config: of the model.
        shapes: of lit_llm's state dict.
        family: its name; None is lit_llm's own format, which uses lit_llm's names.

    Attributes:
        slots: file's tensor name -> `Slot`.
    """

    def __init__(
        self, config: TransformerConfig, shapes: dict[str, torch.Size], family: str | None
    ):
        self.config, self.shapes = config, shapes
        self.family = None if family is None else FAMILIES[family]
        self.slots: dict[str, Slot] = {}
        for ours, shape in shapes.items():
            if ours == "head.weight" and config.tie_embeddings:
                continue
            theirs = ours if self.family is None else _hf_name(ours, self.family)
            if "{n}" in theirs:
                self.slots |= {
                    theirs.replace("{n}", str(n)): Slot([ours], n) for n in range(shape[0])
                }
            else:
                self.slots.setdefault(theirs, Slot([])).ours.append(ours)

    def find(self, name: str) -> str | None:
        """Return the slot for the file's tensor ``name``, or None.

        The file of a base model leaves out the first part of the names.
        """
        if name in self.slots:
            return name
        prefixed = f"{next(iter(self.slots)).split('.')[0]}.{name}"
        return prefixed if prefixed in self.slots else None

    def shape(self, name: str) -> torch.Size:
        """Return the shape of the file's tensor."""
        slot = self.slots[name]
        shape = list(self.shapes[slot.ours[0]])
        if slot.member is None:
            shape[0] = sum(self.shapes[ours][0] for ours in slot.ours)
        else:
            shape = shape[1:]
        return torch.Size(reversed(shape) if self.transposed(name) else shape)

    def split(self, name: str, tensor: Tensor) -> Iterator[tuple[str, int | None, Tensor]]:
        """Split the file's tensor into lit_llm's tensors: name, member of a stack, value."""
        if self.transposed(name):
            tensor = tensor.T.contiguous()
        slot = self.slots[name]
        for ours, part in zip(slot.ours, self.split_rows(slot, tensor), strict=True):
            yield ours, slot.member, part

    def join(self, name: str, state: dict[str, Tensor]) -> Tensor:
        """Build the file's tensor from lit_llm's state dict: the inverse of `split`."""
        slot = self.slots[name]
        parts = [
            state[ours] if slot.member is None else state[ours][slot.member] for ours in slot.ours
        ]
        tensor = self.join_rows(slot, parts)
        return tensor.T if self.transposed(name) else tensor

    def split_rows(self, slot: Slot, tensor: Tensor) -> list[Tensor]:
        """Split the rows of ``tensor`` (rows, ...) among the slot's tensors.

        The parts have lit_llm's order and RoPE layout.
        """
        if self.family is None:
            return [tensor]
        parts = [tensor]
        if len(slot.ours) > 1 and self.family.fused_by_head:
            by_head = tensor.unflatten(0, (self.config.num_heads, len(slot.ours), -1))
            parts = [part.flatten(0, 1) for part in by_head.unbind(1)]
        elif len(slot.ours) > 1:
            parts = list(tensor.split([self.shapes[ours][0] for ours in slot.ours]))
        return [
            _change_rope_layout(*pair, self.config, self.family, back=False)
            for pair in zip(slot.ours, parts, strict=True)
        ]

    def join_rows(self, slot: Slot, parts: list[Tensor]) -> Tensor:
        """Join the rows again: the inverse of `split_rows`."""
        if self.family is None:
            return parts[0]
        parts = [
            _change_rope_layout(*pair, self.config, self.family, back=True)
            for pair in zip(slot.ours, parts, strict=True)
        ]
        if len(parts) > 1 and self.family.fused_by_head:
            heads = self.config.num_heads
            return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 2)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def transposed(self, name: str) -> bool:
        """Whether the file's tensor is a weight (in, out)."""
        module, _, kind = name.rpartition(".")
        return (
            self.family is not None and kind == "weight" and module.endswith(self.family.transposed)
        )
