"""Load a model and quantise it on the way: a layer is packed as soon as it is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_llm.models.hub.digest import digest_of_samples, sample
from lit_llm.models.kernels.quantized import Format, Packed, pack
from lit_llm.models.quantize import quantize_on_meta
from lit_llm.models.transformer import Transformer


def load_quantized(path: str | Path, format: Format, dtype: torch.dtype) -> tuple[Transformer, str]:
    """Return the model of a Hugging Face directory or GGUF file, and the digest of its weights.

    The linear layers of the blocks are packed from the values in the file, whatever ``dtype`` is,
    so that a run has the same base in each precision. All other weights, and the products outside
    of autocast, have ``dtype``. One layer at a time is held unpacked.

    The digest is that of the model before quantisation, see `digest`.

    Raises:
        UserError: as `Transformer.from_pretrained`, `pack` and `quantize_on_meta`.
    """
    names: list[str] = []  # of the whole state dict
    packed: set[str] = set()  # names of the weights to pack
    samples: dict[str, bytes] = {}

    def prepare(model: Transformer) -> None:
        names.extend(model.state_dict())
        packed.update(quantize_on_meta(model, format, dtype))

    def convert(name: str, tensor: Tensor) -> dict[str, Tensor]:
        samples[name] = sample(tensor)
        if name not in packed:
            return {name: tensor.to(dtype)}
        owner = name.removesuffix("weight")
        parts = pack(tensor, format)
        return {f"{owner}{part}": value for part, value in zip(Packed._fields, parts, strict=True)}

    model = Transformer.from_pretrained(path, prepare=prepare, convert=convert)
    tied = {"head.weight": "embed.weight"} if model.config.tie_embeddings else {}
    return model, digest_of_samples((name, samples[tied.get(name, name)]) for name in names)
