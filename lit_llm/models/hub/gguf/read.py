"""Read GGUF files: stream and dequantise the weights, tensor by tensor, into a meta-built model.

The container is in `container`, names and metadata are in `names`, tokenizers in `tokenizer`, and
`write` writes files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.gguf.architectures import ARCHITECTURES
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.hub.gguf.names import config_from_gguf, convert_layout, layout_of
from lit_llm.models.hub.gguf.tokenizer import tokenizer_of
from lit_llm.models.meta import meta_transformer
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

ROPE_FACTORS = "rope_freqs.weight"
_HEAD = "output.weight"


def open_gguf(path: Path) -> GGUFFile:
    """Open the file and check its header.

    Raises:
        UserError: as `GGUFFile`, and if the gguf package is not installed.
    """
    try:
        import gguf  # noqa: F401 -- an optional dependency
    except ImportError:
        raise UserError(
            f"{path}: GGUF needs the gguf package; pip install 'lit_llm[gguf]'"
        ) from None
    return GGUFFile(path)


def load_gguf(
    path: Path,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Transformer], None] | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Return model and tokenizer of a GGUF file.

    Args:
        path: the file.
        dtype: of the weights. None: float32, in which the dequantised values are exact.
        prepare: see `Transformer.from_pretrained`.

    Raises:
        UserError: the file is missing or truncated, or its architecture, tensor type or tokenizer
            is not known.
    """
    file = open_gguf(path)
    return _model(file, dtype or torch.float32, prepare), tokenizer_of(file)


def read_model(
    path: Path,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Transformer], None] | None = None,
    convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
) -> Transformer:
    """Return the model of a GGUF file; arguments and errors as in `Format`."""
    return _model(open_gguf(path), dtype or torch.float32, prepare, convert)


def read_config(path: Path) -> TransformerConfig:
    """Return the shape of a GGUF file's model. Raises as `load_gguf`."""
    return config_of(open_gguf(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a GGUF file. Raises as `load_gguf`."""
    return tokenizer_of(open_gguf(path))


def config_of(file: GGUFFile) -> TransformerConfig:
    """Return the shape of an open file's model. Raises as `load_gguf`."""
    factors = file.read(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    repeats = _HEAD in file.tensors and file.equal(_HEAD, "token_embd.weight")
    try:
        return config_from_gguf(file.metadata, set(file.tensors), factors, repeats)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def _model(
    file: GGUFFile,
    dtype: torch.dtype,
    prepare: Callable[[Transformer], None] | None,
    convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
) -> Transformer:
    config = config_of(file)
    arch = ARCHITECTURES[file.metadata["general.architecture"]]
    _check_size(file, config)
    model = meta_transformer(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if prepare is not None:
        prepare(model)
    if config.tie_embeddings:
        shapes.pop("head.weight")
    layout = layout_of(shapes, config, arch)
    for name, held in layout.items():
        if name not in file.tensors:
            raise UserError(f"{file.path}: tensor {name} is missing")
        first = shapes[held[0]]
        expected = (sum(shapes[ours][0] for ours in held), *first[1:])
        if file.tensors[name].shape != expected:
            raise UserError(
                f"{file.path}: tensor {name} has shape {file.tensors[name].shape}, the metadata "
                f"says {expected}"
            )
    known = {*layout, ROPE_FACTORS, *([_HEAD] if config.tie_embeddings else [])}
    if unknown := [name for name in file.tensors if name not in known]:
        raise UserError(f"{file.path}: unknown tensors: {', '.join(unknown[:8])}")
    loaded: dict[str, Tensor] = {}
    for name, held in layout.items():
        parts = file.read(name).split([shapes[ours][0] for ours in held])
        for ours, part in zip(held, parts, strict=True):
            value = convert_layout(ours, part, config, arch, back=False).to(dtype)
            if len(held) > 1 and value.data_ptr() == part.data_ptr():
                value = value.clone()
            loaded |= {ours: value} if convert is None else convert(ours, value)
    model.assign_weights(loaded)
    return model


def _check_size(file: GGUFFile, config: TransformerConfig) -> None:
    """Check the number of layers against the number of tensors.

    A broken file could claim so many layers that the model would take long to build before a
    missing tensor is noticed.
    """
    if config.num_layers > len(file.tensors):
        raise UserError(
            f"{file.path}: the metadata says {config.num_layers} layers, of {len(file.tensors)} "
            "tensors"
        )
