"""LoRAConfig: which weights of a model are trained beside a frozen base, and how."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from lit_llm.errors import UserError
from lit_llm.settings.checks import check_expression, check_types
from lit_llm.settings.ranges import Range, check_ranges, positive

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Last names of the linear layers of a block, which can have updates."""

WHOLE = {
    "embed": re.compile(r"(position_)?embed\.weight"),
    "head": re.compile(r"head\.weight"),
    "norms": re.compile(r"(.+\.)?\w*norm\.\w+"),
}
"""What `train_modules` can name -> the names of its weights in a state dict."""

RANGES: dict[str, Range] = {
    "rank": Range(1, 1e5), "alpha": positive(1e6), "dropout": Range(0, 1, below=True),
    "lr_ratio": positive(1e4),
}  # fmt: skip
"""Allowed ranges of the numbers in `LoRAConfig`."""

Value = TypeVar("Value")


@dataclass
class LoRAConfig:
    """Which layers are adapted, with which rank and scale, and what is trained beside them."""

    rank: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank, or alpha / sqrt(rank) with ``rank_stabilized``."""
    dropout: float = 0.0
    """Dropout on the input of the update during training."""
    targets: tuple[str, ...] | str = TARGETS
    """Last names of the linear layers to adapt, or one regular expression that must match a layer's
    whole name, as ``layers.0.attention.q_proj``. By default all linear layers of the blocks."""
    rank_stabilized: bool = False
    """Use rsLoRA's scale (arXiv:2312.03732)."""
    dora: bool = False
    """Also train the length of each row of the adapted weights (DoRA, arXiv:2402.09353)."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of some layers. A key is a regular expression that must match the end of the layer's
    name, from a dot on (``down_proj``, ``0.attention.q_proj``); the first that matches counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Alphas of some layers, with keys as in ``rank_pattern``."""
    train_modules: tuple[str, ...] = ()
    """Modules that are trained as a whole, in float32: embed, head, norms. Where head and embedding
    are one matrix, either name trains it, and it stays one."""
    train_tokens: Literal["added", "none"] | None = None
    """Rows of embedding and head that train beside the updates, in float32 and without decay: those
    of the added tokens (``data.add_tokens``), or none. None: added, if tokens are added. All rows
    train with ``train_modules: [embed, head]``."""
    lr_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv:2402.12354, which takes 16)."""

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            self.targets = tuple(self.targets)
        if isinstance(self.train_modules, list):
            self.train_modules = tuple(self.train_modules)
        if self.train_tokens == "all":
            raise UserError(
                "lora.train_tokens=all: set lora.train_modules to [embed, head] instead"
            )
        check_types("lora", LoRAConfig, vars(self))
        check_ranges(vars(self), RANGES, "lora.")
        _refuse_unknown("targets", () if isinstance(self.targets, str) else self.targets, TARGETS)
        _refuse_unknown("train_modules", self.train_modules, tuple(WHOLE))
        for name, number in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
            for pattern, value in getattr(self, name).items():
                check_expression(pattern, f"lora.{name}")
                check_ranges({number: value}, RANGES, f"lora.{name}[{pattern!r}]: ")
        if isinstance(self.targets, str):
            check_expression(self.targets, "lora.targets")
        if self.train_tokens is not None and {"embed", "head"} <= set(self.train_modules):
            raise UserError(
                f"lora.train_tokens={self.train_tokens}: lora.train_modules trains all rows of "
                "embedding and head; leave one of the two out"
            )

    def scale(self, rank: int, alpha: float) -> float:
        """Return the factor of the product B A for an update of this rank."""
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def adapts(self, layer: str) -> bool:
        """Whether the linear layer of this name, as ``layers.0.mlp.up_proj``, has an update."""
        last = layer.rpartition(".")[2]
        if isinstance(self.targets, str):
            return last in TARGETS and re.fullmatch(self.targets, layer) is not None
        return last in self.targets

    def rank_of(self, layer: str) -> int:
        """Return the rank of the layer's update."""
        return first_match(self.rank_pattern, layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """Return the alpha of the layer's update."""
        return first_match(self.alpha_pattern, layer, self.alpha)

    def trains_whole(self, name: str, tied: bool) -> bool:
        """Whether the weight of this name in a state dict is trained as a whole.

        ``tied`` says that head and embedding are one matrix.
        """
        modules = set(self.train_modules)
        if tied and modules & {"embed", "head"} and name in ("embed.weight", "head.weight"):
            return True
        return any(WHOLE[module].fullmatch(name) for module in modules)


def first_match(patterns: Mapping[str, Value], layer: str, otherwise: Value) -> Value:
    """Return the value of the first pattern that matches the end of a layer's name.

    Follows ``get_pattern_key`` of peft/utils/other.py.
    """
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return otherwise


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


def _refuse_unknown(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := set(names) - set(known):
        mend = "; one regular expression is given as a text" if field == "targets" else ""
        raise UserError(
            f"lora.{field}: unknown {', '.join(sorted(unknown))}; known are "
            f"{', '.join(known)}{mend}"
        )
