"""Weights in a safetensors file that everybody may read whom the umask lets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write ``tensors`` as ``file``, as transformers marks its own.

    `safetensors.torch.save_file` writes into a temporary file, which only its owner may read, and
    renames it: a server under another account could not open the model.
    """
    file.touch()  # with the mode that the umask gives, or of the file that is written over
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode & 0o777)
