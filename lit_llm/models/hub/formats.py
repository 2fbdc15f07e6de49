"""Formats in which models and tokenizers lie on disk, and the modules that read them.

`Transformer`, `TransformerConfig` and `Tokenizer` ask for a reader by a path and import none. So
the
readers can import the model, without a circle. A further format is an entry in `FILE_FORMATS`: the
name of a module with the functions of `Format`. Readers are imported when a path asks for them.
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

FILE_FORMATS = {".gguf": "lit_llm.models.hub.gguf.read"}
"""Ending of a file -> module that reads the model and the tokenizer in it."""

_FOLDER = "lit_llm.models.hub.huggingface"
_TOKENIZER_FOLDER = "lit_llm.models.hub.tokenizer_folder"  # imports no torch


class Format(Protocol):
    """The functions of a module that reads a format. Each raises UserError for a broken file."""

    def read_config(self, path: Path) -> TransformerConfig:
        """The shape of the model."""

    def read_model(
        self,
        path: Path,
        dtype: torch.dtype | None = None,
        prepare: Callable[[Transformer], None] | None = None,
    ) -> Transformer:
        """The model; the arguments are those of `Transformer.from_pretrained`."""

    def read_tokenizer(self, path: Path) -> Tokenizer:
        """The tokenizer."""


def format_of(path: Path) -> Format:
    """The format of a model at ``path``: by a file's ending, else the folder of Hugging Face."""
    return cast(Format, import_module(FILE_FORMATS.get(path.suffix, _FOLDER)))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at ``path``: of a file with a known ending, else a tokenizer.json or its
    folder."""
    module = import_module(FILE_FORMATS.get(path.suffix, _TOKENIZER_FOLDER))
    return cast(Format, module).read_tokenizer(path)


def write_model(
    model: Transformer,
    folder: Path,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write the folder of Hugging Face; the arguments are those of
    `Transformer.save_pretrained`."""
    import_module(_FOLDER).write_model(model, folder, dtype, state_dict)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int | None) -> None:
    """Write a tokenizer's files; the arguments are those of `Tokenizer.save_pretrained`."""
    import_module(_TOKENIZER_FOLDER).write_tokenizer(tokenizer, folder, model_max_length)
