"""Formats of models and tokenizers on disk, and the modules that read them.

`Transformer`, `TransformerConfig` and `Tokenizer` ask this module for the reader of a path and
import no reader themselves. The readers can therefore import the model without an import circle. A
new format is one entry in `FILE_FORMATS`: the name of a module with the functions of `Format`. A
reader is imported only when a path needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

FILE_FORMATS = {
    ".gguf": "lit_llm.models.hub.gguf.read",
    ".pt": "lit_llm.models.hub.nanochat.read",
}
"""File suffix -> module that reads the model and the tokenizer in such a file."""

_FOLDER = "lit_llm.models.hub.huggingface"
_TOKENIZER_FOLDER = "lit_llm.models.hub.tokenizer_folder"  # imports no torch


class Format(Protocol):
    """The functions of a module that reads a format. Each raises UserError for a broken file."""

    def read_config(self, path: Path) -> TransformerConfig:
        """Return the shape of the model."""

    def read_model(
        self,
        path: Path,
        dtype: torch.dtype | None = None,
        prepare: Callable[[Transformer], None] | None = None,
        convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
    ) -> Transformer:
        """Return the model; the arguments are those of `Transformer.from_pretrained`."""

    def read_tokenizer(self, path: Path) -> Tokenizer:
        """Return the tokenizer."""


def format_of(path: Path) -> Format:
    """Return the format of a model at ``path``, by file suffix; else a Hugging Face directory."""
    return cast(Format, import_module(FILE_FORMATS.get(path.suffix, _FOLDER)))


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer at ``path``.

    The path is a file with a known suffix, a tokenizer.json or a folder that holds one.
    """
    module = import_module(FILE_FORMATS.get(path.suffix, _TOKENIZER_FOLDER))
    return cast(Format, module).read_tokenizer(path)


def write_model(
    model: Transformer,
    folder: Path,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face directory; the arguments are those of `Transformer.save_pretrained`."""
    import_module(_FOLDER).write_model(model, folder, dtype, state_dict)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int | None) -> None:
    """Write a tokenizer's files; the arguments are those of `Tokenizer.save_pretrained`."""
    import_module(_TOKENIZER_FOLDER).write_tokenizer(tokenizer, folder, model_max_length)
