"""Write a safetensors file with the permissions of the umask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write ``tensors`` to ``file``, with the same metadata as transformers.

    `safetensors.torch.save_file` writes a temporary file that only its owner may read, and renames
    it. A server under another account could not open the model. This function restores the usual
    permissions.
    """
    file.touch()  # gets its mode from the umask; an existing file keeps its mode
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(mode & 0o777)
