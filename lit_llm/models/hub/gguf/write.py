"""Write GGUF files for llama.cpp and programs built on it.

The tensors are converted and written one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.io.atomic import replacing
from lit_llm.models.hub.gguf.architectures import ARCHITECTURES
from lit_llm.models.hub.gguf.names import convert_layout, gguf_arch_of, layout_of, metadata_of
from lit_llm.models.hub.gguf.read import ROPE_FACTORS
from lit_llm.models.hub.gguf.tokenizer_write import tokenizer_metadata
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

Quantization = Literal["f16", "q8_0", "f32", "bf16"]
# general.file_type: llama.cpp's enum llama_ftype.
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
# Largest value of a tensor. The scale of a block in Q8_0 is a float16, and its integers go to 127.
_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
_BLOCK = 32  # values of a row that share a scale in Q8_0
# Small tensors that engines read as float32: routers, learned positions, and norms of any rank.
_EXACT = ("ffn_gate_inp.weight", "position_embd.weight", "_norm.weight")


def write_gguf(
    model: Transformer, tokenizer: Tokenizer, file: Path, quantization: Quantization
) -> list[str]:
    """Write ``model`` and ``tokenizer`` as a GGUF file, whole or not at all.

    Matrices are stored as ``quantization`` says. Norms, biases, routers and learned positions are
    stored as float32. With q8_0, matrices whose rows do not divide into blocks of 32 are stored as
    float16.

    Args:
        model: of an architecture that GGUF has, with weights on any device.
        tokenizer: has at most as many tokens as the model.
        file: written as FILE.part in the same folder and then renamed.
        quantization: f32 is exact, f16 and bf16 are rounded, q8_0 has 8 bits per weight and a scale
            per 32.

    Returns:
        How llama.cpp differs from the tokenizer on rare texts, one sentence each.

    Raises:
        UserError: GGUF cannot express the model or how the tokenizer splits text, ``quantization``
            cannot hold a weight, or the file cannot be written.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise UserError(
            f"{file}: GGUF needs the gguf package; pip install 'lit_llm[gguf]'"
        ) from None
    config = model.config
    kind = gguf_arch_of(config)
    arch = ARCHITECTURES[kind]
    values, factors = metadata_of(config, kind)
    state = model.state_dict()
    layout = layout_of(state, config, arch)
    tokenizer_values, notes = tokenizer_metadata(
        tokenizer, config.vocab_size, config.eos_token_id, file.stem
    )
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.file_type": _FILE_TYPES[quantization],
        "general.quantization_version": 2,
        **{f"{kind}.{key}": value for key, value in values.items()},
        f"{kind}.vocab_size": config.vocab_size,
        **tokenizer_values,
    }
    for key, index in (("bos", config.bos_token_id), ("padding", config.pad_token_id)):
        if index is not None and 0 <= index < config.vocab_size:
            metadata.setdefault(f"tokenizer.ggml.{key}_token_id", index)

    def stored(name: str, shape: list[int]) -> GGMLQuantizationType:
        if len(shape) == 1 or name.endswith(_EXACT):
            return GGMLQuantizationType.F32
        if quantization == "q8_0" and shape[-1] % _BLOCK:
            return GGMLQuantizationType.F16
        return GGMLQuantizationType[quantization.upper()]

    # A GGUF file is a header, the metadata, the description of every tensor, and then the tensors
    # in the same order. Only one converted tensor is in memory at a time.
    try:
        with replacing(file) as part:
            writer = GGUFWriter(part, kind)
            for key, value in metadata.items():
                _add(writer, key, value)
            if factors is not None:
                writer.add_tensor_info(
                    ROPE_FACTORS, factors.shape, np.dtype(np.float32), factors.nbytes
                )
            kinds: dict[str, GGMLQuantizationType] = {}
            for name, held in layout.items():
                shape = [sum(state[ours].shape[0] for ours in held), *state[held[0]].shape[1:]]
                kinds[name] = stored(name, shape)
                _add_info(writer, name, shape, kinds[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(factors.numpy())
            for name, held in layout.items():
                parts = [
                    convert_layout(
                        ours, state[ours].detach().cpu().float(), config, arch, back=True
                    )
                    for ours in held
                ]
                tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
                _check_range(tensor, name, kinds[name], file)
                writer.write_tensor_data(_quantized(tensor, kinds[name]))
            writer.close()
    except OSError as error:
        raise UserError(f"{file}: could not be written ({error})") from None
    return notes


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_info(writer: Any, name: str, shape: list[int], kind: Any) -> None:
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import quant_shape_to_byte_shape

    block, block_bytes = GGML_QUANT_SIZES[kind]
    size = int(np.prod(shape)) // block * block_bytes
    if kind.name in ("F32", "F16"):
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32 if kind.name == "F32" else np.float16), size
        )
    else:
        writer.add_tensor_info(
            name, quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8), size, raw_dtype=kind
        )


def _check_range(tensor: Tensor, name: str, kind: Any, file: Path) -> None:
    """Raise a UserError if a value would become infinite, or is not a finite number."""
    low, high = tensor.aminmax()
    largest = _LARGEST.get(kind.name)
    if largest is not None and not (max(-low, high) <= largest):  # also if they are NaN
        raise UserError(
            f"{file}: {name} has values beyond the {largest:,.0f} of {kind.name}, or not finite: "
            "write it with quantization bf16 or f32"
        )


def _quantized(tensor: Tensor, kind: Any) -> np.ndarray:
    from gguf.quants import quantize

    values = tensor.contiguous().numpy()
    return values if kind.name == "F32" else np.ascontiguousarray(quantize(values, kind))
