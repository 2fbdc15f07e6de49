"""PEFT's adapter directories: written from a model's LoRA updates, read onto a model, several kept side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.config_json import family_of
from lit_llm.models.huggingface import read_json
from lit_llm.models.layout import Layout, Slot
from lit_llm.models.lora import (
    TARGETS,
    LoRAConfig,
    LoRALinear,
    apply_lora,
    is_lora,
    lora_layers,
    unmerge_adapter,
)
from lit_llm.models.transformer import Transformer


def save_adapter(
    model: Transformer,
    folder: str | Path,
    base: str = "",
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write the updates as PEFT does: adapter_config.json and adapter_model.safetensors.

    Where the family keeps several of our layers as one, their updates become one of as many times the rank: A holds
    theirs one above the other, B theirs along the diagonal.

    Args:
        model: has been through ``apply_lora``.
        folder: made if it is not there.
        base: path or name of the base model, noted in the config.
        state_dict: updates to write in place of the model's own, under the same names.

    Raises:
        UserError: the model has no updates, or is of no Hugging Face family.
    """
    from safetensors.torch import save_file

    folder, config = Path(folder), model.lora
    if config is None:
        raise UserError("the model has no LoRA updates to save")
    layout = _layout(model)
    if layout.family is None:
        raise UserError("PEFT knows no model of this shape: an adapter cannot be written")
    state = model.state_dict() if state_dict is None else state_dict
    tensors: dict[str, Tensor] = {}
    fused: dict[str, int] = {}  # their layer's name -> how many of ours it holds
    targets = set()
    for module, slot, ours in _adaptable(model, layout):
        if not any(isinstance(linear, LoRALinear) for linear in ours):
            continue
        rank, parts = config.rank, len(ours)
        a = torch.zeros(parts * rank, ours[0].in_features)
        b = [torch.zeros(linear.out_features, parts * rank) for linear in ours]
        for i, (linear, weight) in enumerate(zip(ours, slot.ours, strict=True)):
            if isinstance(linear, LoRALinear):
                part, name = slice(i * rank, (i + 1) * rank), weight.removesuffix("weight")
                a[part], b[i][:, part] = state[f"{name}lora_a"], state[f"{name}lora_b"]
        prefix, name = f"base_model.model.{module}", module.rsplit(".", 1)[-1]
        tensors[f"{prefix}.lora_A.weight"] = a
        tensors[f"{prefix}.lora_B.weight"] = layout.join_rows(slot, b).contiguous()
        targets.add(name)
        if parts > 1:
            fused[name] = parts
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": sorted(targets), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "use_rslora": config.rank_stabilized,
        **{key: value for key, value in _patterns(config, fused).items() if value},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(
        json.dumps(content, indent=2) + "\n", encoding="utf-8"
    )


@dataclass
class Adapter:
    """Updates read from a PEFT directory.

    Attributes:
        config: how they were trained.
        updates: A (rank, in) and B (out, rank), float32, by the name of our layer.
    """

    config: LoRAConfig
    updates: dict[str, tuple[Tensor, Tensor]]


def load_adapter(model: Transformer, folder: str | Path) -> None:
    """Put the updates of a PEFT directory beside the model's layers, in place, and freeze the model.

    Raises as `read_adapter`.
    """
    adapter = read_adapter(model, folder)
    apply_lora(model, adapter.config)
    for name, (a, b) in adapter.updates.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, LoRALinear)
        linear.lora_a.data.copy_(a)
        linear.lora_b.data.copy_(b)


class Adapters:
    """Several adapters of one model, at most one of them in use: a model serves many tasks from one set of weights."""

    def __init__(self, model: Transformer):
        self.model = model
        self._known: dict[str, Adapter] = {}

    def add(self, name: str, folder: str | Path) -> None:
        """Read a PEFT directory as ``name``. Raises as `read_adapter`, of which the model must be the base."""
        self._known[name] = read_adapter(self.model, folder)

    def use(self, name: str | None) -> None:
        """Put ``name``'s updates in place of any other's; None leaves the base alone.

        Raises:
            UserError: no adapter of that name.
        """
        if name is not None and name not in self._known:
            raise UserError(
                f"no adapter named {name!r}; known are {', '.join(self._known) or 'none'}"
            )
        unmerge_adapter(self.model)
        for layer in lora_layers(self.model):
            layer.remove()
        self.model.lora = None
        if name is None:
            return
        adapter = self._known[name]
        self.model.lora = adapter.config
        for module, (a, b) in adapter.updates.items():
            linear = self.model.get_submodule(module)
            assert isinstance(linear, nn.Linear)
            layer = LoRALinear.adapt(linear, adapter.config)
            layer.lora_a.data.copy_(a)
            layer.lora_b.data.copy_(b)
            layer.requires_grad_(False)


def read_adapter(model: Transformer, folder: str | Path) -> Adapter:
    """The updates of a PEFT directory for ``model``.

    An update of a layer that is several of ours becomes one of each: B's rows are theirs, A is copied.

    Raises:
        UserError: no such adapter, one of another kind than plain LoRA, or one that does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    layout = _layout(model)
    if layout.family is None:
        raise UserError(f"{folder}: PEFT knows no model of this shape")
    content = _read_config(folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'adapter_model.safetensors'}: not readable ({error})") from None
    # By the tensors themselves: target_modules may be names, full names, a pattern or a word for all.
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in tensors}
    slots = [(module, slot) for module, slot, _ in _adaptable(model, layout) if module in adapted]
    names = [ours.removesuffix(".weight") for _, slot in slots for ours in slot.ours]
    targets = tuple(
        target for target in TARGETS if any(name.endswith("." + target) for name in names)
    )
    config = LoRAConfig(
        rank=content["r"],
        alpha=content["lora_alpha"],
        dropout=content.get("lora_dropout", 0.0),
        targets=targets,
        rank_stabilized=bool(content.get("use_rslora")),
    )
    fused = {
        module.rsplit(".", 1)[-1]: len(slot.ours) for module, slot in slots if len(slot.ours) > 1
    }
    stacked = any(content.get(key) for key in ("rank_pattern", "alpha_pattern"))
    if stacked and any(
        (content.get(key) or {}) != value for key, value in _patterns(config, fused).items()
    ):
        raise UserError(
            f"{folder}/adapter_config.json: this rank_pattern or alpha_pattern is not supported"
        )
    updates: dict[str, tuple[Tensor, Tensor]] = {}
    for module, slot in slots:
        parts, rank = len(slot.ours), config.rank
        total = rank * parts if stacked and parts > 1 else rank
        shapes = [layout.shapes[ours] for ours in slot.ours]
        prefix = f"base_model.model.{module}"
        a = _fitting(tensors, f"{prefix}.lora_A.weight", (total, shapes[0][1]), folder)
        joined = _fitting(
            tensors, f"{prefix}.lora_B.weight", (sum(shape[0] for shape in shapes), total), folder
        )
        for i, (ours, b) in enumerate(zip(slot.ours, layout.split_rows(slot, joined), strict=True)):
            own = slice(i * rank, (i + 1) * rank) if total > rank else slice(None)
            if b.count_nonzero() != b[:, own].count_nonzero():
                raise UserError(
                    f"{folder}: {prefix}.lora_B.weight mixes the layers that it holds: not supported"
                )
            updates[ours.removesuffix(".weight")] = a[own].float(), b[:, own].float()
    expected = {name for name, module in model.layers.named_modules(prefix="layers")
                if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets}  # fmt: skip
    if tensors or not updates or expected - updates.keys():
        where = ", ".join((sorted(tensors) or sorted(expected - updates.keys()) or ["it"])[:4])
        raise UserError(
            f"{folder}: the adapter does not fit the model: {where} without a place or without an update"
        )
    return Adapter(config, updates)


def _fitting(tensors: dict[str, Tensor], name: str, shape: tuple[int, int], folder: Path) -> Tensor:
    """``name`` out of ``tensors``, of that shape."""
    value = tensors.pop(name, None)
    if value is None or tuple(value.shape) != shape:
        found = "missing" if value is None else f"of shape {tuple(value.shape)}, not {shape}"
        raise UserError(f"{folder}: the adapter does not fit the model: {name} is {found}")
    return value


def _layout(model: Transformer) -> Layout:
    """Of the model without its updates."""
    shapes = {
        name: tensor.shape for name, tensor in model.state_dict().items() if not is_lora(name)
    }
    return Layout(model.config, shapes, family_of(model.config))


def _adaptable(model: Transformer, layout: Layout) -> Iterator[tuple[str, Slot, list[nn.Linear]]]:
    """Their name, slot and layers of ours for each of their linear layers that can be adapted."""
    for name, slot in layout.slots.items():
        modules = [ours.rpartition(".")[0] for ours in slot.ours]
        if name.endswith(".weight") and all(
            module.rsplit(".", 1)[-1] in TARGETS for module in modules
        ):
            linears = [m for m in map(model.get_submodule, modules) if isinstance(m, nn.Linear)]
            if len(linears) == len(modules):
                yield name.removesuffix(".weight"), slot, linears


def _patterns(config: LoRAConfig, fused: dict[str, int]) -> dict[str, dict[str, float]]:
    """PEFT's rank_pattern and alpha_pattern of stacked updates: the scale stays the single ones'."""
    scale = math.sqrt if config.rank_stabilized else float
    return {
        "rank_pattern": {name: parts * config.rank for name, parts in fused.items()},
        "alpha_pattern": {name: scale(parts) * config.alpha for name, parts in fused.items()},
    }


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, after seeing that it is of plain LoRA."""
    content = read_json(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: the adapter is {content.get('peft_type')!r}; only LORA is known"
        )
    # Each of these changes what the tensors mean; off, they are absent, null, false or empty. fan_in_fan_out says how
    # the base's own weights lie.
    for key in ("use_dora", "modules_to_save", "layers_to_transform", "lora_bias", "layer_replication",
                "target_parameters", "trainable_token_indices"):  # fmt: skip
        if content.get(key):
            raise UserError(f"{folder}/adapter_config.json: {key} is not supported")
    if content.get("bias", "none") != "none":
        raise UserError(f"{folder}/adapter_config.json: bias={content['bias']} is not supported")
    return content
