"""Names of evaluations."""

from __future__ import annotations

import re
from pathlib import Path

from lit_llm.settings.arguments import adapter_name


def default_name(checkpoint: str, adapter: str | None = None) -> str:
    """The name of the results of a checkpoint: that of its run, folder or file.

    >>> default_name("runs/mine/final"), default_name("runs/mine/checkpoints/step-10.ckpt")
    ('mine', 'mine-step-10')
    """
    path = Path(checkpoint)
    if path.name in ("", "."):
        path = path.resolve()
    known = path.suffix in (".gguf", ".ckpt", ".pt", ".safetensors")
    name = path.stem if known else path.name
    if path.name == "final":
        name = path.absolute().parent.name
    elif path.parent.name == "checkpoints":
        name = f"{path.absolute().parent.parent.name}-{name}"
    if adapter is not None:
        name += f"-{adapter_name(adapter)}"
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "model"
