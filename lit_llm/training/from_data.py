"""Completes a model's configuration with fields that depend on the training data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.formats import FILE_FORMATS
from lit_llm.models.hub.locate import locate
from lit_llm.models.hub.tokenizer_folder import OLDER_FORMATS
from lit_llm.models.tokenizer import Tokenizer

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
DECIDED_BY_DATA = ("vocab_size", *_SPECIAL, "max_seq_len")
"""Fields of a `TransformerConfig` that the data decides if they are not given."""


def take_from_data(fields: dict[str, Any], data: Any, init_from: str | None) -> None:
    """Add missing vocabulary size, special tokens and context length to ``fields``, in place.

    Args:
        fields: fields of a `TransformerConfig`.
        data: a data module. Its ``tokenizer``, ``base_tokenizer`` (without the tokens that it adds
            to the tokenizer of ``init_from``) and ``seq_len`` are used if it has them; None adds
            nothing.
        init_from: where the weights come from, or None.

    Raises:
        UserError: the given model is too small for the data, or was trained with another tokenizer.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None:
        if init_from is not None:
            _check_same_tokenizer(getattr(data, "base_tokenizer", tokenizer), init_from)
            if getattr(data, "added_tokens", None):
                fields["vocab_size"] = max(fields["vocab_size"], tokenizer.vocab_size)
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
    """Add the fields that data decides, and that are still missing, from a checkpoint.

    Args:
        fields: fields of a `TransformerConfig`, changed in place.
        saved: the checkpoint's fields. A preset's name has no information about the data, and adds
            nothing.
    """
    if isinstance(saved, str):
        return
    for name in DECIDED_BY_DATA:
        if name in saved:
            fields.setdefault(name, saved[name])


def _check_same_tokenizer(tokenizer: Tokenizer, init_from: str) -> None:
    """Raise a UserError if the model at ``init_from`` has another tokenizer.

    With other token ids the pretrained weights would be useless, and no other error would say so.
    """
    found = locate(init_from)
    if found.suffix not in FILE_FORMATS and not (found / "tokenizer.json").exists():
        if older := [name for name in OLDER_FORMATS if (found / name).exists()]:
            rank_zero_warn(
                f"model.init_from={init_from}: its {older[0]} is not read, so it is not known "
                "whether the data has the model's tokenizer; transformers makes a tokenizer.json"
            )
        return
    if Tokenizer.from_pretrained(init_from).fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"the data has another tokenizer than model.init_from: set data.tokenizer={init_from}; "
            "data.add_tokens adds tokens to it"
        )


def fields_of(transformer: str | dict[str, Any] | TransformerConfig) -> dict[str, Any]:
    """``transformer`` as fields for `TransformerConfig.from_dict`.

    Fields that are None in a `TransformerConfig` are left out, so that the data decides them.
    """
    if isinstance(transformer, TransformerConfig):
        return {key: value for key, value in transformer.to_dict().items() if value is not None}
    return {"preset": transformer} if isinstance(transformer, str) else dict(transformer)


def is_shape_of(transformer: str | dict[str, Any] | TransformerConfig, init_from: str) -> bool:
    """Whether the fields ``transformer`` agree with the config of the model at ``init_from``.

    Checkpoints hold both settings, and Lightning's ``load_from_checkpoint`` passes both to the
    module. Fields that the data decides may differ.
    """
    if not isinstance(transformer, dict) or not init_from:
        return False
    try:
        config = TransformerConfig.from_pretrained(init_from).to_dict()
    except UserError:
        return False
    fields = {name: value for name, value in transformer.items() if name not in DECIDED_BY_DATA}
    return bool(fields) and fields.items() <= config.items()
