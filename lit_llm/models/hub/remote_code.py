"""Directories that bring their own modelling file, for models that no family of transformers has.

The file is `modeling_lit_llm`: plain torch, without lit_llm. transformers loads such a directory
with ``trust_remote_code=True``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lit_llm.models.config import TransformerConfig

_FILE = Path(__file__).with_name("modeling_lit_llm.py")
# Fields that the file does not compute -> their only value there.
_FIXED: dict[str, Any] = {
    "norm": "rmsnorm", "residual": "sequential", "num_experts": 0, "learned_positions": False,
    "rope_scaling": None, "local_rope_theta": None, "attention_softcap": None,
}  # fmt: skip
_QK_NORMS = ("none", "before_rope", "after_rope")


def not_computed(config: TransformerConfig) -> list[str]:
    """Return the fields of ``config`` that the modelling file does not compute."""
    fields = [name for name, value in _FIXED.items() if getattr(config, name) != value]
    return fields + ["qk_norm"] * (config.qk_norm not in _QK_NORMS)


def config_keys(config: TransformerConfig) -> dict[str, Any]:
    """Return the keys of config.json that make transformers load the modelling file."""
    module = _FILE.stem
    return {
        "architectures": ["LitLLMForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.LitLLMConfig",
            "AutoModelForCausalLM": f"{module}.LitLLMForCausalLM",
        },
    }


def write_modeling_file(folder: Path) -> None:
    """Copy the modelling file to ``folder``."""
    shutil.copyfile(_FILE, folder / _FILE.name)
