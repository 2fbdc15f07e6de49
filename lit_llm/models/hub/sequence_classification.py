"""Directories of transformers' classes for sequence classification: names and config.json."""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.hub.families import FAMILIES

SCORE = "score.weight"
"""Name of the head's weight in transformers' classes."""
_SUFFIX = "ForSequenceClassification"
FAMILIES_WITH_SCORES = frozenset({
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "phi3", "gpt2",
    "gpt_neox", "olmo2", "smollm3", "stablelm",
})  # fmt: skip
"""Families of which transformers has such a class; a test compares them with transformers."""


def architecture(family: str | None) -> str:
    """Name of transformers' class.

    Raises:
        UserError: transformers has no such class of this family.
    """
    if family not in FAMILIES_WITH_SCORES:
        raise UserError(
            f"a reward model of the family {family or 'lit_llm'} has no class in transformers; "
            f"train one of {', '.join(sorted(FAMILIES_WITH_SCORES))}"
        )
    name = FAMILIES[family].architecture
    return name.replace("ForCausalLM", _SUFFIX).replace("LMHeadModel", _SUFFIX)


def is_reward_config(hf: dict[str, Any]) -> bool:
    """Whether a config.json is that of a class for sequence classification."""
    return any(str(name).endswith(_SUFFIX) for name in hf.get("architectures") or ())


def reward_config(hf: dict[str, Any], family: str | None) -> dict[str, Any]:
    """The config.json of a language model as that of its reward model."""
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return {**hf, "architectures": [architecture(family)], **labels}
