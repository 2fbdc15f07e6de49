"""PEFT's adapter_config.json for LoRA: which modules of the base it changes, and how.

Every field of PEFT 0.21's ``LoraConfig`` is treated in one of three ways. It is read here; or it is
known to have no effect on the result of a trained adapter; or it is refused by name unless it is
off. A field that PEFT 0.21 does not have is refused unless it is off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.hub.huggingface import read_json
from lit_llm.models.lora_config import first_match
from lit_llm.settings.checks import check_expression

_READ = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout",
    "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "modules_to_save", "ensure_weight_tying", "bias",
    "init_lora_weights", "use_dora", "trainable_token_indices",
}  # fmt: skip
# Facts about the file, the layout of the base's weights, and settings of initialisations. The
# tensors of a trained adapter mean the same for any value of these. `init_lora_weights` says
# whether one of the initialisations was used.
_WITHOUT_EFFECT = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size",
}  # fmt: skip
# Initialisations that do not change the base. All others change the base's weights, and the
# adapter's directory does not hold the changed base.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterConfig:
    """The contents of an adapter_config.json.

    Attributes:
        base: name of the model that the adapter was trained on; may be empty.
        rank, alpha: for modules that no pattern matches.
        targets: names of modules, or one regular expression, or None if the file does not say.
        excluded: the same for modules without an update.
        layers: numbers of the adapted layers; None: all.
        layers_pattern: names of the list of layers; empty: any.
        rank_patterns, alpha_patterns: regular expression -> value.
        saved: ends of the names of modules that are trained as a whole.
        token_ids: end of the name of an embedding or head -> its rows that are trained. The name is
            "" if the file gives the rows alone, which are then those of the embedding.
        keep_tied: whether a tied head follows an adapted embedding.
    """

    base: str
    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    dora: bool
    targets: str | list[str] | None
    excluded: str | list[str] | None
    layers: list[int] | None
    layers_pattern: list[str]
    rank_patterns: dict[str, int]
    alpha_patterns: dict[str, float]
    saved: list[str]
    token_ids: dict[str, list[int]]
    keep_tied: bool

    @classmethod
    def read(cls, file: Path) -> AdapterConfig:
        """Read an adapter_config.json.

        Raises:
            UserError: a field is not supported or has a value of the wrong type; the message names
                it.
        """
        content = read_json(file)
        _refuse_other_kinds(content, file)
        fields = _Fields(content, file)
        layers = fields.value("layers_to_transform", "a number or list of numbers", _is_layers)
        pattern = fields.value("layers_pattern", "a string or list of strings", _is_names)
        rows = fields.value(
            "trainable_token_indices", "token ids, or token ids by name", _is_token_ids, {}
        )
        config = cls(
            base=str(content.get("base_model_name_or_path") or ""),
            rank=fields.value("r", "a number above 0", _is_rank, 8),
            alpha=fields.value("lora_alpha", "a number", _is_number, 8),
            dropout=fields.value("lora_dropout", "a number", _is_number, 0.0),
            rank_stabilized=bool(content.get("use_rslora")),
            dora=bool(content.get("use_dora")),
            targets=fields.value("target_modules", "a string or list of strings", _is_names),
            excluded=fields.value("exclude_modules", "a string or list of strings", _is_names),
            layers=[layers] if isinstance(layers, int) else layers or None,
            layers_pattern=[pattern] if isinstance(pattern, str) else pattern or [],
            rank_patterns=fields.value("rank_pattern", "ranks by name", _is_ranks, {}),
            alpha_patterns=fields.value("alpha_pattern", "numbers by name", _is_numbers, {}),
            saved=fields.value("modules_to_save", "a list of strings", _is_list_of_names, []),
            token_ids={"": rows} if isinstance(rows, list) and rows else dict(rows),
            keep_tied=bool(content.get("ensure_weight_tying")),
        )
        if isinstance(config.targets, str) and layers is not None:
            raise UserError(f"{file}: layers_to_transform needs a list of target_modules")
        for name, patterns in config._patterns().items():
            for text in patterns:
                check_expression(text, f"{file}: {name}")
        return config

    def _patterns(self) -> dict[str, list[str]]:
        return {
            "target_modules": [self.targets] if isinstance(self.targets, str) else [],
            "exclude_modules": [self.excluded] if isinstance(self.excluded, str) else [],
            "layers_pattern": self.layers_pattern,
            "rank_pattern": list(self.rank_patterns),
            "alpha_pattern": list(self.alpha_patterns),
            "modules_to_save": self.saved,
        }

    @property
    def takes_all_linear(self) -> bool:
        """Whether every linear layer except the head is adapted, PEFT's "all-linear"."""
        return isinstance(self.targets, str) and self.targets.lower() == _ALL_LINEAR

    def adapts(self, module: str) -> bool:
        """Whether the module of this name, a linear layer or an embedding, has an update.

        Follows ``check_target_module_exists`` in peft/tuners/tuners_utils.py.
        """
        if self.excluded and _named(module, self.excluded):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved):
            return False
        if self.targets is None or self.takes_all_linear:
            return True
        if not _named(module, self.targets):
            return False
        if isinstance(self.targets, str) or module in self.targets or self.layers is None:
            return True
        names = self.layers_pattern
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names] or [r".*?\.[^.]*\.(\d+)\."]
        found = next(filter(None, (re.match(pattern, module) for pattern in patterns)), None)
        return found is not None and int(found.groups()[-1]) in self.layers

    def saves(self, module: str) -> bool:
        """Whether the module of this name is trained as a whole.

        See ``_set_trainable`` in peft/utils/other.py.
        """
        return any(module.endswith(name) for name in self.saved)

    def rank_of(self, module: str) -> int:
        """Return the rank of the module's update."""
        return first_match(self.rank_patterns, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Return the alpha of the module's update."""
        return first_match(self.alpha_patterns, module, self.alpha)


def _named(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _refuse_other_kinds(content: dict[str, Any], file: Path) -> None:
    """Refuse an adapter whose computation differs from LoRA."""
    if content.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type={content.get('peft_type')!r}: only LORA is supported")
    if content.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"{file}: task_type={content['task_type']!r}: only CAUSAL_LM is supported")
    if content.get("bias") not in (None, "none", "all", "lora_only"):
        raise UserError(f"{file}: bias={content['bias']!r} is not supported")
    start = content.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise UserError(
            f"{file}: init_lora_weights={start!r} changes the base's weights and is not supported; "
            "convert the adapter in PEFT: save_pretrained(DIR, "
            "path_initial_model_for_weight_conversion=...)"
        )
    for key, value in content.items():
        if key in _READ or key in _WITHOUT_EFFECT or not value:
            continue
        raise UserError(f"{file}: {key}={_short(value)} is not supported; only LoRA and DoRA are")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


class _Fields:
    """Values of checked types from a JSON object; null gives the default."""

    def __init__(self, content: dict[str, Any], file: Path):
        self._content, self._file = content, file

    def value(self, key: str, wanted: str, check: Any, default: Any = None) -> Any:
        value = self._content.get(key)
        if value is None:
            return default
        if not check(value):
            raise UserError(f"{self._file}: {key} must be {wanted}, got {_short(value)}")
        return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_token_ids(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(
        isinstance(ids, list)
        and all(type(i) is int and i >= 0 for i in ids)
        and len(set(ids)) == len(ids)
        for ids in lists
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or _is_list_of_names(value)


def _is_layers(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(type(number) is int for number in values)


def _is_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_rank, value.values()))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))
