"""LoRA adapters beside one base, mixed in one step: each row gets its own adapter's update.

Shapes: R rows, C width of a layer's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.hub.adapter_reader import Update, read_adapter
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.transformer import Transformer


class _LayerUpdate(nn.Module):
    """One layer's update: (R, C) -> (R, out), float32."""

    def __init__(self, update: Update, scale: float):
        super().__init__()
        rank, size = update.a.shape
        self.a = nn.Linear(size, rank, bias=False, dtype=torch.float32)
        self.b = nn.Linear(rank, len(update.b), bias=False, dtype=torch.float32)
        with torch.no_grad():
            self.a.weight.copy_(update.a)
            self.b.weight.copy_(scale * update.b.float())

    def forward(self, x_RC: Tensor) -> Tensor:
        return self.b(self.a(x_RC.float()))


class MixedAdapters:
    """Adapters of one model, any number of them in use at the same time.

    The base's weights do not change: the updates are added to the outputs of its layers.

    Args:
        model: their base, before its weights are packed.
        folders: name -> PEFT directory.
        row_step: rows of an adapter are padded to a multiple of this number.

    Raises:
        UserError: as `read_adapter`; and for DoRA and for adapters that replace or add to other
            weights than linear layers of the blocks, which must be merged instead.
    """

    def __init__(self, model: Transformer, folders: Mapping[str, str | Path], row_step: int):
        self.names = list(folders)
        self._row_step = row_step
        self._rows: dict[str, Tensor | None] = {}
        self._layers: dict[str, dict[str, _LayerUpdate]] = {}  # layer's name -> adapter's name ->
        for name, folder in folders.items():
            adapter = read_adapter(model, folder)
            if adapter.config.dora or adapter.weights:
                what = "DoRA" if adapter.config.dora else ", ".join(list(adapter.weights)[:3])
                raise UserError(
                    f"adapter {name}: {what} cannot be served beside its base: merge the adapter "
                    "(lit_llm merge) and serve the result"
                )
            for layer, update in adapter.updates.items():
                scale = adapter.config.scale(len(update.a), update.alpha)
                self._layers.setdefault(layer, {})[name] = _LayerUpdate(update, scale)
        for layer, updates in self._layers.items():
            linear = model.get_submodule(layer)
            for module in updates.values():
                module.to(model.embed.weight.device)
                pack_linears(module)
            linear.register_forward_hook(self._hook(updates))

    def route(self, adapters: Sequence[str | None], device: torch.device) -> None:
        """Choose the adapter of each row of the next forward pass; one name is for all rows."""
        if len(adapters) == 1:
            self._rows = {} if adapters[0] is None else {adapters[0]: None}
            return
        self._rows = {}
        for name in sorted({name for name in adapters if name is not None}):
            rows = [i for i, each in enumerate(adapters) if each == name]
            self._rows[name] = torch.tensor(rows, device=device)

    def _hook(self, updates: dict[str, _LayerUpdate]) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for name, rows in self._rows.items():
                update = updates.get(name)
                if update is None:
                    continue
                x_RC, y_RC = inputs[0].flatten(0, -2), output.flatten(0, -2)
                if rows is None:
                    y_RC += update(x_RC).to(y_RC.dtype)
                else:
                    padded = F.pad(x_RC[rows], (0, 0, 0, -len(rows) % self._row_step))
                    y_RC[rows] += update(padded)[: len(rows)].to(y_RC.dtype)
            return output

        return add
