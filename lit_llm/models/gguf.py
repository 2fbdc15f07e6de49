"""GGUF files in: weights through the ``gguf`` package's dequantiser, tokenizer and chat template from the metadata.

The format is described in the ``gguf`` package and in llama.cpp's ``gguf-py``; names of tensors and keys are theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.tokenizer import SPLIT_PATTERN, Tokenizer
from lit_llm.models.transformer import Transformer

if TYPE_CHECKING:
    from gguf import GGUFReader

# general.architecture -> fields of ours that it fixes. All are Llama-like.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": "before_rope"},
}
# Only "llama" files hold q and k with each head's rotary pairs interleaved.
_INTERLEAVED = ("llama",)
# our field -> key after the architecture's name
_FIELDS = {
    "num_layers": "block_count",
    "max_seq_len": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}
# our tensor -> theirs; {i} is the layer
_TENSORS = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm",
    "layers.{i}.attention.q_proj": "blk.{i}.attn_q",
    "layers.{i}.attention.k_proj": "blk.{i}.attn_k",
    "layers.{i}.attention.v_proj": "blk.{i}.attn_v",
    "layers.{i}.attention.o_proj": "blk.{i}.attn_output",
    "layers.{i}.attention.q_norm": "blk.{i}.attn_q_norm",
    "layers.{i}.attention.k_norm": "blk.{i}.attn_k_norm",
    "layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
}
# tokenizer.ggml.pre -> how that vocabulary's text is split before merging
_DIGITS, _GPT2, _LLAMA3, _QWEN2 = "digits, then GPT-2's pattern", "GPT-2's pattern", "Llama 3's", "Qwen 2's"
_SPLITS = {
    "smollm": _DIGITS, "default": _GPT2, "gpt-2": _GPT2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2,
}  # fmt: skip
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def load_gguf(path: Path, dtype: torch.dtype | None = None) -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a GGUF file.

    Args:
        path: the file.
        dtype: of the weights. None: float32, in which the dequantised values are exact.

    Raises:
        UserError: the file is missing, cut or of an architecture or tokenizer that is not known.
    """
    reader = _open(path)
    return _model(reader, path, dtype or torch.float32), _tokenizer(reader, path)


def gguf_config(path: Path) -> TransformerConfig:
    """The shape of a GGUF file's model. Raises as ``load_gguf``."""
    return _config(_open(path), path)


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises as ``load_gguf``."""
    return _tokenizer(_open(path), path)


def _open(path: Path) -> GGUFReader:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the gguf package; pip install 'lit_llm[gguf]'") from None
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader maps the file and fails in as many ways as there are fields
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: not a whole GGUF file ({said})") from None


def _value(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def _config(reader: GGUFReader, path: Path) -> TransformerConfig:
    kind = _value(reader, "general.architecture")
    if kind not in _ARCHITECTURES:
        raise UserError(f"{path}: architecture {kind!r} is not known; known are {', '.join(_ARCHITECTURES)}")
    scaling = _value(reader, f"{kind}.rope.scaling.type", "none")
    names = {tensor.name for tensor in reader.tensors}
    if scaling != "none" or "rope_freqs.weight" in names:
        raise UserError(f"{path}: RoPE scaling is not supported yet; only the default is")
    fields: dict[str, Any] = dict(_ARCHITECTURES[kind])
    for ours, theirs in _FIELDS.items():
        value = _value(reader, f"{kind}.{theirs}")
        if value is None:
            raise UserError(f"{path}: the metadata lacks {kind}.{theirs}")
        fields[ours] = value
    heads = fields["num_heads"]
    return TransformerConfig.from_dict(
        {
            **fields,
            "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
            "num_kv_heads": _value(reader, f"{kind}.attention.head_count_kv", heads),
            "head_dim": _value(reader, f"{kind}.attention.key_length", fields["hidden_size"] // heads),
            "rope_theta": _value(reader, f"{kind}.rope.freq_base", 10000.0),
            "tie_embeddings": "output.weight" not in names,
            "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
            "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
            "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        }
    )


def _model(reader: GGUFReader, path: Path, dtype: torch.dtype) -> Transformer:
    from gguf.quants import dequantize

    config = _config(reader, path)
    with torch.device("meta"):
        model = Transformer(config)
    interleaved = _value(reader, "general.architecture") in _INTERLEAVED
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    loaded: dict[str, Tensor] = {}
    for ours, expected in model.state_dict().items():
        if ours == "head.weight" and config.tie_embeddings:
            continue
        name = _their_name(ours)
        if name not in theirs:
            raise UserError(f"{path}: tensor {name} is missing")
        tensor = theirs.pop(name)
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if value.shape != expected.shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tuple(value.shape)}, the metadata says {tuple(expected.shape)}"
            )
        if interleaved and name.split(".")[2:3] in (["attn_q"], ["attn_k"]):
            assert config.head_dim is not None
            value = _pairs_to_halves(value, config.head_dim)
        loaded[ours] = value.to(dtype)
    if theirs:
        raise UserError(f"{path}: tensors without a place: {', '.join(theirs)}")
    model.assign_weights(loaded)
    return model


def _their_name(ours: str) -> str:
    *module, kind = ours.split(".")
    layer = module[1] if module[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *module[2:]] if layer else module)
    return f"{_TENSORS[generic].replace('{i}', layer)}.{kind}"


def _pairs_to_halves(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from (pair, member) to (member, pair): what llama.cpp's converter did to them, undone."""
    pairs = tensor.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _tokenizer(reader: GGUFReader, path: Path) -> Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    kind, pre = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise UserError(f"{path}: tokenizer {kind!r} with split {pre!r} is not known; known are gpt2 with {known}")
    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in _value(reader, "tokenizer.ggml.merges", [])]
    split = _SPLITS[pre]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=split == _LLAMA3))
    by_pattern = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (_DIGITS, _GPT2))
    splitters: dict[str, list[Any]] = {
        _DIGITS: [pre_tokenizers.Digits(individual_digits=True)],
        _GPT2: [],
        _LLAMA3: [pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")],
        # Qwen's differs from Llama 3's in taking digits one by one
        _QWEN2: [pre_tokenizers.Split(Regex(SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")), behavior="isolated")],
    }
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splitters[split], by_pattern])
    if split == _QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token, t in zip(tokens, types, strict=True)
             if t == _CONTROL]  # fmt: skip
    backend.add_special_tokens(added)
    backend.add_tokens([AddedToken(token, normalized=False) for token, t in zip(tokens, types, strict=True)
                        if t == _USER_DEFINED])  # fmt: skip

    def named(key: str) -> str | None:
        index = _value(reader, f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    return Tokenizer(
        backend,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        chat_template=_value(reader, "tokenizer.chat_template"),
    )
