"""The model card of ``final/``: of which step its weights are, and from which base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lit_llm
from lit_llm.models.scorer import is_scorer
from lit_llm.training.callbacks.final_weights import Origin

_NAME = "README.md"  # the Hub's name of a model card


def write_card(folder: Path, name: str, module: Any, origin: Origin) -> None:
    """Write the model card of a Hugging Face directory, unless it has one.

    Args:
        folder: the directory.
        name: title of the card.
        module: the LightningModule; its ``init_from`` is named without its folder.
        origin: step of the weights.
    """
    if (folder / _NAME).exists():
        return
    base = module.hparams.get("init_from")
    task = (
        "text-classification" if is_scorer(getattr(module, "network", None)) else "text-generation"
    )
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {task}", "---", "",
        f"# {name}", "",
        f"- Weights: {origin}.",
        *([f"- Trained from: {Path(str(base)).name}."] if base else []),
        f"- Trained by lit_llm {lit_llm.__version__}, {type(module).__name__}.",
    ]  # fmt: skip
    (folder / _NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
