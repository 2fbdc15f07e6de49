"""Reward models of a directory, and the token that their texts are padded with."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch

from lit_llm.errors import UserError
from lit_llm.models.hub.huggingface import read_model
from lit_llm.models.hub.locate import locate
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer


def padding_token(tokenizer: Tokenizer, used: Collection[int]) -> tuple[str, int]:
    """A control token for padding that is not one of those ``used`` in conversations.

    transformers reads the score at the last token that is not padding. Many chat models pad with
    the token that ends an answer, whose score would be read one token too early.

    Raises:
        UserError: every control token is used.
    """
    known = {index: text for text, index in tokenizer.control_tokens.items()}
    own = [] if tokenizer.pad_id is None else [tokenizer.pad_id]
    for index in [*own, *known]:
        if index in known and index not in used:
            return known[index], index
    raise UserError(
        "conversations use all control tokens of the tokenizer, and none is left to pad with; "
        "data.add_tokens='[\"<|pad|>\"]' adds one"
    )


def set_padding(folder: Path, token: str, index: int) -> None:
    """Write the padding token into the folder's config.json and tokenizer_config.json."""
    for name, value in (("config.json", {"pad_token_id": index}),
                        ("tokenizer_config.json", {"pad_token": token})):  # fmt: skip
        file = folder / name
        content = json.loads(file.read_text(encoding="utf-8")) | value
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_reward_model(
    path: str | Path, dtype: torch.dtype | None = None
) -> tuple[Transformer, Tokenizer]:
    """The scorer in a directory, in evaluation mode, and its tokenizer.

    Raises:
        UserError: there is no such directory, or it holds no reward model.
    """
    folder = locate(path)
    if (folder / "final").is_dir():
        folder = folder / "final"
    model = read_model(folder, dtype, scorer=True)
    return model.eval(), Tokenizer.from_pretrained(folder)
