"""A model's shape: what its setting says of it, and what it takes from the data that it is trained
on."""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.locate import locate
from lit_llm.models.tokenizer import Tokenizer

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
DECIDED_BY_DATA = ("vocab_size", *_SPECIAL, "max_seq_len")
"""Fields of a `TransformerConfig` that the data decides where they are left open."""


def take_from_data(fields: dict[str, Any], data: Any, init_from: str | None) -> None:
    """Fill in what ``fields``, of a `TransformerConfig`, leave open: vocabulary, special tokens,
    context.

    Args:
        data: a data module with ``tokenizer`` and ``seq_len``; of one without, and of None, nothing
            is taken.
        init_from: what the weights come from, or None.

    Raises:
        UserError: the model is given and too small for the data, or was trained with another
            tokenizer.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None:
        if init_from is not None:
            _check_same_tokenizer(tokenizer, init_from)
        given = fields.get("vocab_size")
        if given is not None and given < tokenizer.vocab_size:
            raise UserError(
                f"model.transformer.vocab_size={given} is too small for the tokenizer's "
                f"{tokenizer.vocab_size}"
            )
        if given is None:
            fields["vocab_size"] = tokenizer.vocab_size
        for name in _SPECIAL:
            value = getattr(tokenizer, name.replace("_token", ""))
            if value is not None:
                fields.setdefault(name, value)
    seq_len = getattr(data, "seq_len", None)
    longest = TransformerConfig.from_dict(fields).max_seq_len
    if seq_len is not None and seq_len > longest:
        if "max_seq_len" in fields:
            raise UserError(
                f"data.seq_len={seq_len} exceeds model.transformer.max_seq_len={longest}"
            )
        fields["max_seq_len"] = seq_len


def take_from_checkpoint(fields: dict[str, Any], saved: dict[str, Any] | str) -> None:
    """Fill in what neither ``fields`` nor any data decides with what it was when a checkpoint was
    written.

    Args:
        saved: the checkpoint's fields; a preset's name says nothing of the data.
    """
    if isinstance(saved, str):
        return
    for name in DECIDED_BY_DATA:
        if name in saved:
            fields.setdefault(name, saved[name])


def _check_same_tokenizer(tokenizer: Tokenizer, init_from: str) -> None:
    """Continued pretraining on other token ids would start from noise, and say nothing."""
    found = locate(init_from)
    if found.suffix != ".gguf" and not (found / "tokenizer.json").exists():
        return
    if Tokenizer.from_pretrained(init_from).fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"the data has another tokenizer than model.init_from: set data.tokenizer={init_from}"
        )


def fields_of(transformer: str | dict[str, Any] | TransformerConfig) -> dict[str, Any]:
    """As `TransformerConfig.from_dict` takes them; what is None in a config, the data decides."""
    if isinstance(transformer, TransformerConfig):
        return {key: value for key, value in transformer.to_dict().items() if value is not None}
    return {"preset": transformer} if isinstance(transformer, str) else dict(transformer)


def is_shape_of(transformer: str | dict[str, Any] | TransformerConfig, init_from: str) -> bool:
    """Whether ``transformer`` says of the model at ``init_from`` what its own config says.

    Checkpoints hold both, and Lightning's ``load_from_checkpoint`` gives both back. What the data
    decides may differ.
    """
    if not isinstance(transformer, dict) or not init_from:
        return False
    try:
        its = TransformerConfig.from_pretrained(init_from).to_dict()
    except UserError:
        return False
    fields = {name: value for name, value in transformer.items() if name not in DECIDED_BY_DATA}
    return bool(fields) and fields.items() <= its.items()
