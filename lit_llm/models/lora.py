"""LoRA (arXiv:2106.09685): low-rank updates beside frozen linear layers, and PEFT's adapter files.

A `LoRALinear` is a linear layer whose weight keeps its name, so that checkpoints of the base fit before and after. The
update is ``scale * x A^T B^T`` with A (rank, in) and B (out, rank); B starts at zero, so training starts from the base.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.huggingface import FAMILIES, converted, family_of, read_json, tensor_names
from lit_llm.models.transformer import Transformer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class LoRAConfig:
    """What is adapted, and by how much."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank, or alpha / sqrt(rank) with ``rank_stabilized``."""
    dropout: float = 0.0
    """Dropout on the update's input while training."""
    targets: tuple[str, ...] = TARGETS
    """Names of the linear layers to adapt; all of those in the blocks unless given."""
    rank_stabilized: bool = False
    """rsLoRA's scale (arXiv:2312.03732)."""

    def __post_init__(self) -> None:
        self.targets = tuple(self.targets)
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if unknown := set(self.targets) - set(TARGETS):
            raise UserError(f"lora.targets: unknown {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trainable low-rank update: (..., in) -> (..., out)."""

    lora_a: nn.Parameter  # (rank, in)
    lora_b: nn.Parameter  # (out, rank)
    scale: float
    dropout: float

    @classmethod
    def adapt(cls, linear: nn.Linear, config: LoRAConfig) -> LoRALinear:
        """``linear`` itself, turned into a LoRALinear in place: hooks, device and whoever refers to it stay."""
        weight = linear.weight
        linear.__class__ = cls
        assert isinstance(linear, LoRALinear)
        linear.scale, linear.dropout = config.scale, config.dropout
        # float32: the updates are small, and optimizers lose them in half precision.
        options: dict[str, Any] = {"device": weight.device, "dtype": torch.float32}
        linear.lora_a = nn.Parameter(torch.empty(config.rank, linear.in_features, **options))
        linear.lora_b = nn.Parameter(torch.zeros(linear.out_features, config.rank, **options))
        nn.init.kaiming_uniform_(linear.lora_a, a=math.sqrt(5))  # as in the paper's code and PEFT
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the update's."""
        base = F.linear(x, self.weight, self.bias)
        dropped = F.dropout(x, self.dropout, self.training)
        if not torch.is_autocast_enabled(x.device.type):  # else the products cast what they need themselves
            dropped = dropped.to(self.lora_a.dtype)
        update = F.linear(F.linear(dropped, self.lora_a), self.lora_b)
        return base + self.scale * update.to(base.dtype)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight with the update in it, in the weight's dtype."""
        update = self.scale * (self.lora_b.float() @ self.lora_a.float())
        return (self.weight.float() + update).to(self.weight.dtype)


def apply_lora(model: Transformer, config: LoRAConfig) -> None:
    """Freeze ``model`` and put trainable updates beside the targets, in place. Raises UserError where none is found."""
    model.requires_grad_(False)
    found = [m for name, m in model.layers.named_modules() if name.rsplit(".", 1)[-1] in config.targets]
    if not found:
        raise UserError(f"lora.targets: the model has none of {', '.join(config.targets)}")
    for module in found:
        assert isinstance(module, nn.Linear)
        LoRALinear.adapt(module, config)
    model.lora = config


def merge_lora(model: Transformer) -> None:
    """Fold the updates into the weights, in place: ordinary linear layers again."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            weight = module.merged_weight()
            del module.lora_a, module.lora_b
            module.__class__ = nn.Linear  # type: ignore[assignment]
            module.weight.data = weight
    model.lora = None


def merged_state_dict(model: Transformer) -> dict[str, Tensor]:
    """The state dict of ``merge_lora``'s result, the model itself left as it is."""
    updated = {name: module.merged_weight() for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    state = {name: value for name, value in model.state_dict().items() if not is_lora(name)}
    return state | {f"{name}.weight": weight for name, weight in updated.items()}


def is_lora(name: str) -> bool:
    """Whether a name in a state dict is of an update."""
    return name.endswith((".lora_a", ".lora_b"))


def save_adapter(model: Transformer, folder: str | Path, base: str = "") -> None:
    """Write the updates as PEFT does: adapter_config.json and adapter_model.safetensors.

    Args:
        model: has been through ``apply_lora``.
        folder: made if it is not there.
        base: path or name of the base model, noted in the config.

    Raises:
        UserError: the model has no updates, or is of no Hugging Face family.
    """
    from safetensors.torch import save_file

    folder, config = Path(folder), model.lora
    family = family_of(model.config)
    if config is None:
        raise UserError("the model has no LoRA updates to save")
    if family is None:
        raise UserError("PEFT knows no model of this shape: an adapter cannot be written")
    tensors = {}
    for ours, tensor in model.state_dict().items():
        if is_lora(ours):
            module, kind = ours.rsplit(".", 1)
            theirs = tensor_names(model.config, module, FAMILIES[family])
            value = tensor.detach().cpu().float()
            if kind == "lora_b":  # rows are the layer's outputs: a family's layout change is theirs too
                value = converted(module + ".weight", value, model.config, FAMILIES[family])
            tensors[f"base_model.model.{theirs}.lora_{kind[-1].upper()}.weight"] = value.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [_their_target(name, model, family) for name in config.targets if _has(model, name)]
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": sorted(targets), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "use_rslora": config.rank_stabilized,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: Transformer, folder: str | Path) -> None:
    """Put the updates of a PEFT directory beside the model's layers, in place; the model is frozen.

    Raises:
        UserError: no such adapter, one of another kind than plain LoRA, or one that does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    family_name = family_of(model.config)
    if family_name is None:
        raise UserError(f"{folder}: PEFT knows no model of this shape")
    family = FAMILIES[family_name]
    content = _read_config(folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'adapter_model.safetensors'}: not readable ({error})") from None
    # By the tensors themselves: target_modules may be names, full names, a pattern or a word for all.
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors}
    targets = [name for name in TARGETS if _has(model, name) and _their_target(name, model, family_name) in adapted]
    config = LoRAConfig(
        rank=content["r"],
        alpha=content["lora_alpha"],
        dropout=content.get("lora_dropout", 0.0),
        targets=tuple(targets),
        rank_stabilized=bool(content.get("use_rslora")),
    )
    apply_lora(model, config)
    expected = {name: value for name, value in model.state_dict(keep_vars=True).items() if is_lora(name)}
    for ours, parameter in expected.items():
        module, kind = ours.rsplit(".", 1)
        name = f"base_model.model.{tensor_names(model.config, module, family)}.lora_{kind[-1].upper()}.weight"
        value = tensors.pop(name, None)
        if value is None or value.shape != parameter.shape:
            found = "missing" if value is None else f"of shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
            raise UserError(f"{folder}: the adapter does not fit the model: {name} is {found}")
        if kind == "lora_b":
            value = converted(module + ".weight", value, model.config, family)
        parameter.data.copy_(value)
    if tensors:
        raise UserError(f"{folder}: the adapter has updates without a place: {', '.join(sorted(tensors)[:4])}")


def _read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, after seeing that it is of plain LoRA."""
    content = read_json(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise UserError(f"{folder}: the adapter is {content.get('peft_type')!r}; only LORA is known")
    # Each of these changes what the tensors mean; off, they are absent, null, false or empty.
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias",
                "layer_replication", "fan_in_fan_out", "target_parameters", "trainable_token_indices"):  # fmt: skip
        if content.get(key):
            raise UserError(f"{folder}/adapter_config.json: {key} is not supported")
    if content.get("bias", "none") != "none":
        raise UserError(f"{folder}/adapter_config.json: bias={content['bias']} is not supported")
    return content


def _has(model: Transformer, name: str) -> bool:
    return any(module.rsplit(".", 1)[-1] == name for module, _ in model.layers.named_modules())


def _their_target(name: str, model: Transformer, family: str) -> str:
    """Their name of a layer of ours, its last part: what PEFT's ``target_modules`` lists."""
    part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "attention"
    return tensor_names(model.config, f"layers.0.{part}.{name}", FAMILIES[family]).rsplit(".", 1)[-1]


def lora_from(value: dict[str, Any] | LoRAConfig | None) -> LoRAConfig | None:
    """A LoRAConfig from the plain values of a config file. Raises UserError for an unknown key."""
    if value is None or isinstance(value, LoRAConfig):
        return value
    if unknown := set(value) - set(asdict(LoRAConfig())):
        raise UserError(f"unknown key lora.{sorted(unknown)[0]}; known are {', '.join(asdict(LoRAConfig()))}")
    return LoRAConfig(**value)
