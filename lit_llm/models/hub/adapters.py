"""PEFT adapter directories: write one from a model, load one onto a model, keep several.

`adapter_config` reads adapter_config.json; `adapter_reader` finds the place of every tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.hub.adapter_reader import (
    Adapter,
    adaptable,
    layout_without_updates,
    read_adapter,
)
from lit_llm.models.hub.tensor_layout import Layout
from lit_llm.models.lora import (
    LoRALinear,
    is_trained,
    put_rows,
    trained_layers,
    unmerge_adapter,
)
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.models.token_rows import (
    ROWS,
    TokenRows,
    add_token_rows,
    cut_vocabulary,
)
from lit_llm.models.transformer import Transformer


def save_adapter(
    model: Transformer,
    folder: str | Path,
    base: str = "",
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write the updates in PEFT's format: adapter_config.json and adapter_model.safetensors.

    Modules that were trained as a whole are written beside them (PEFT's ``modules_to_save``), and
    so are the rows of added tokens (``trainable_token_indices``).

    If the family stores several of lit_llm's layers as one, their updates become one update whose
    rank is the sum of their ranks. Its A holds their A matrices one above the other, its B holds
    their B matrices along the diagonal. Updates that share one A become one update of the same
    rank.

    Names are those of the family; of a model of no family they are lit_llm's, which its modelling
    file has too.

    Args:
        model: has been through ``apply_lora`` or ``load_adapter``.
        folder: created if necessary.
        base: path or name of the base model, written to the config.
        state_dict: updates to write instead of the model's own, under the same names.

    Raises:
        UserError: the model has no updates, or also has replaced weights.
    """
    from lit_llm.models.hub.weight_file import save_tensors

    folder, config = Path(folder), model.lora
    if config is None:
        raise UserError("the model has no LoRA updates to save")
    if model.replaced:
        raise UserError(
            f"the loaded adapter replaced whole weights ({', '.join(model.replaced[:4])}), which "
            "are not written as an adapter: merge_lora(model) and save the model"
        )
    layout = layout_without_updates(model)
    state = model.state_dict() if state_dict is None else state_dict
    tensors: dict[str, Tensor] = {}
    adapted: dict[str, tuple[int, float]] = {}  # family's module -> rank and alpha
    others = []
    for module, slot, ours in adaptable(model, layout):
        if not any(isinstance(linear, LoRALinear) for linear in ours):
            others.append(module)
            continue
        names = [name.removesuffix("weight") for name in slot.ours]
        a, parts, scale = _joined(ours, names, state)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = layout.join_rows(
            slot, parts
        ).contiguous()
        if config.dora:
            tensors[f"base_model.model.{module}.lora_magnitude_vector"] = layout.join_rows(
                slot, [_magnitude(*pair, state) for pair in zip(ours, names, strict=True)]
            ).contiguous()
        rank = len(a)
        adapted[module] = rank, scale * (math.sqrt(rank) if config.rank_stabilized else rank)
    saved, tied = _whole_tensors(model, layout, state), model.config.tie_embeddings
    tensors |= {f"base_model.model.{name}": value for name, value in saved.items()}
    rows = _rows(model, layout)
    tensors |= {
        f"base_model.model.{module}.token_adapter.trainable_tokens_delta": state[
            f"{layout.slots[f'{module}.weight'].ours[0].removesuffix('weight')}{ROWS}"
        ]
        .detach()
        .clone()
        for module in rows
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "adapter_model.safetensors")
    extra: dict[str, Any] = {"use_dora": True} if config.dora else {}
    if saved:
        whole = [
            name for name in saved if not (tied and layout.slots[name].ours == ["head.weight"])
        ]
        extra["modules_to_save"] = sorted({name.rpartition(".")[0] for name in whole})
        if tied and len(whole) < len(saved):
            extra["ensure_weight_tying"] = True
    if rows:
        extra["trainable_token_indices"] = {
            module.rpartition(".")[2]: list(layer.ids) for module, layer in rows.items()
        }
    _write_config(folder, config, base, adapted, others, extra)


def _whole_tensors(
    model: Transformer, layout: Layout, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the family's tensors that were trained as a whole. A tied head is the embedding."""
    saved = {}
    for name, slot in layout.slots.items():
        trained = [is_trained(model, ours) for ours in slot.ours]
        if not any(trained):
            continue
        assert all(trained), f"{name} joins trained and frozen tensors"
        saved[name] = layout.join(name, state).detach().clone().contiguous()
    return saved


def _rows(model: Transformer, layout: Layout) -> dict[str, TokenRows]:
    """Return the layers that train rows, by the family's names. A tied head is left out."""
    found = {}
    for name, slot in layout.slots.items():
        layer = model.get_submodule(slot.ours[0].rpartition(".")[0])
        tied = model.config.tie_embeddings and layer is model.head
        if isinstance(layer, TokenRows) and not tied:
            found[name.removesuffix(".weight")] = layer
    return found


def _magnitude(linear: nn.Linear, prefix: str, state: dict[str, Tensor]) -> Tensor:
    """Return DoRA's magnitudes of one layer: those trained, or the lengths of a plain layer."""
    trained = state.get(f"{prefix}lora_magnitude")
    if trained is not None:
        return trained
    return torch.linalg.vector_norm(linear.weight.detach().float(), dim=1)


def _joined(
    linears: list[nn.Linear], names: list[str], state: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor], float]:
    """Join the updates of several layers into one.

    Returns A, the rows of B for each layer, and the scale.
    """
    updates = [
        (i, state[f"{names[i]}lora_a"], state[f"{names[i]}lora_b"], layer.scale)
        for i, layer in enumerate(linears)
        if isinstance(layer, LoRALinear)
    ]
    _, first, _, scale = updates[0]
    alike = all(torch.equal(a, first) and its == scale for _, a, _, its in updates)
    if alike and len(updates) == len(linears):
        return first.clone(), [b for _, _, b, _ in updates], scale
    # Stack the A matrices; each B fills its own columns (a block diagonal). Differences in scale go
    # into B.
    rank, at = sum(len(a) for _, a, _, _ in updates), 0
    a_joined = torch.zeros(rank, linears[0].in_features)
    b_joined = [torch.zeros(linear.out_features, rank) for linear in linears]
    for i, a, b, its in updates:
        here = slice(at, at + len(a))
        a_joined[here], b_joined[i][:, here] = a, b * (its / scale)
        at = here.stop
    return a_joined, b_joined, scale


def _write_config(
    folder: Path,
    config: LoRAConfig,
    base: str,
    adapted: dict[str, tuple[int, float]],
    others: list[str],
    extra: dict[str, Any],
) -> None:
    """Write adapter_config.json, with the fields ``extra`` as they are.

    A last name part stands for all modules that end in it, a full name for one module.
    """
    kinds: dict[str, set[tuple[int, float]]] = defaultdict(set)
    for module, value in adapted.items():
        kinds[module.rpartition(".")[2]].add(value)
    partly = {module.rpartition(".")[2] for module in others}
    targets, ranks, alphas = set(), {}, {}
    for module, (rank, alpha) in adapted.items():
        kind = module.rpartition(".")[2]
        targets.add(module if kind in partly else kind)
        name = kind if len(kinds[kind]) == 1 else module
        if rank != config.rank:
            ranks[name] = rank
        if not math.isclose(alpha, config.alpha):
            alphas[name] = alpha
    content: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout,
        "target_modules": sorted(targets), "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "use_rslora": config.rank_stabilized,
        "rank_pattern": ranks, "alpha_pattern": alphas, **extra,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(
        json.dumps(content, indent=2) + "\n", encoding="utf-8"
    )


def load_adapter(model: Transformer, folder: str | Path) -> None:
    """Add the updates of a PEFT directory to the model's layers, in place, and freeze the model.

    Weights that the adapter replaces as a whole (PEFT's ``modules_to_save``, and updates of
    embedding, head and experts) replace those of the base. Raises the same errors as
    `read_adapter`.
    """
    adapter = read_adapter(model, folder)
    model.requires_grad_(False)
    _put(model, adapter)


def _put(model: Transformer, adapter: Adapter) -> None:
    if adapter.untied:
        model.untie()
    if adapter.vocab_size is not None:
        add_token_rows(model, range(model.config.vocab_size, adapter.vocab_size))
    for name, value in adapter.weights.items():
        model.get_parameter(name).data.copy_(value)
    for name in adapter.updates:
        adapt(model, adapter, name)
    for name, rows in adapter.rows.items():
        put_rows(model, name, rows.ids).data.copy_(rows.values)
        if name == "embed" and model.config.tie_embeddings:
            put_rows(model, "head", rows.ids)
    model.lora, model.base_dtype = adapter.config, model.embed.weight.dtype
    whole = {name for name in adapter.weights if is_trained(model, name)}
    model.replaced = tuple(name for name in adapter.weights if name not in whole)


def adapt(model: Transformer, adapter: Adapter, name: str) -> LoRALinear:
    """Give the layer called ``name`` its update of ``adapter``, and return it."""
    linear, update = model.get_submodule(name), adapter.updates[name]
    assert isinstance(linear, nn.Linear)
    layer = LoRALinear.adapt(linear, adapter.config, len(update.a), update.alpha)
    layer.lora_a.data.copy_(update.a)
    layer.lora_b.data.copy_(update.b)
    if layer.lora_magnitude is not None and update.magnitude is not None:
        layer.lora_magnitude.data.copy_(update.magnitude)
    return layer


class Adapters:
    """Several adapters of one model, at most one of them in use.

    One set of weights can thus serve many tasks.
    """

    def __init__(self, model: Transformer):
        self.model = model
        self._known: dict[str, Adapter] = {}
        self._used: str | None = None
        self._base: dict[str, Tensor] = {}  # base weights that the adapter in use has replaced
        self._tied, self._vocab_size = model.config.tie_embeddings, model.config.vocab_size

    def add(self, name: str, folder: str | Path) -> None:
        """Read a PEFT directory as ``name``.

        The model must be the adapter's base. Raises the same errors as `read_adapter`.
        """
        used = self._used
        self.use(None)  # an update of a whole weight is added to the base's weight
        try:
            self._known[name] = read_adapter(self.model, folder)
        finally:
            self.use(used)

    def use(self, name: str | None) -> None:
        """Replace the updates in use by those of ``name``; None leaves the base model alone.

        Raises:
            UserError: no adapter of that name.
        """
        if name is not None and name not in self._known:
            raise UserError(
                f"no adapter named {name!r}; known are {', '.join(self._known) or 'none'}"
            )
        self._restore()
        self._used = name
        if name is not None:
            adapter = self._known[name]
            self._base = {
                ours: self.model.get_parameter(ours).detach().clone() for ours in adapter.weights
            }
            _put(self.model, adapter)
            for layer in trained_layers(self.model):
                layer.requires_grad_(False)

    def _restore(self) -> None:
        """Restore the base's weights, without updates."""
        model = self.model
        unmerge_adapter(model)
        for layer in trained_layers(model):
            layer.remove()
        if model.config.vocab_size > self._vocab_size:
            cut_vocabulary(model, self._vocab_size)
        for name, value in self._base.items():
            model.get_parameter(name).data.copy_(value)
        if self._tied and not model.config.tie_embeddings:
            model.head.weight = model.embed.weight
            model.config = dataclasses.replace(model.config, tie_embeddings=True)
        model.lora, model.replaced, self._base = None, (), {}
