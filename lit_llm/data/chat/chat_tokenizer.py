"""The tokenizer of finetuning: that of the base, tokens that are added to it, and a template."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.shipped_templates import missing_tokens, template_source
from lit_llm.models.added_tokens import with_tokens
from lit_llm.models.tokenizer import Tokenizer


class ChatTokenizer(NamedTuple):
    """A tokenizer with its chat template, and where it comes from."""

    tokenizer: Tokenizer
    """Its `stop_ids` include the token that ends a turn."""
    base: Tokenizer
    """The base's own, without a change."""
    added: dict[str, int]
    """The tokens that the base's does not have, with their ids."""


def chat_tokenizer(
    path: str | Path, chat_template: str | None, tokens: Sequence[str]
) -> ChatTokenizer:
    """Read the tokenizer at ``path``, add tokens, and set its chat template.

    Control tokens that a template of the package writes and the tokenizer lacks are added too.

    Args:
        path: see `Tokenizer.from_pretrained`.
        chat_template: as in `template_source`; None: the tokenizer's own.
        tokens: see `with_tokens`. Those that exist already are told.

    Raises:
        UserError: as `Tokenizer.from_pretrained`, `with_tokens` and `template_source`.
    """
    base = Tokenizer.from_pretrained(path)
    missing = missing_tokens(chat_template, base)
    tokenizer, added = with_tokens(base, tokens, missing)
    if known := [token for token in tokens if token not in added]:
        rank_zero_info(f"data.add_tokens: not added, the tokenizer has {', '.join(known)} already")
    if added:
        rank_zero_info(
            f"tokens added: {', '.join(f'{token} ({index})' for token, index in added.items())}; "
            "their rows of embedding and head begin as the mean of the others"
        )
    if tokenizer is base:
        tokenizer = copy.copy(base)
    if chat_template is not None:
        tokenizer.chat_template = template_source(chat_template, tokenizer)
        # Otherwise transformers would use "tool_use" for messages with tools
        tokenizer.named_templates = {}
    tokenizer.add_stop_ids(ChatFormat(tokenizer).stop_ids)
    return ChatTokenizer(tokenizer, base, added)


def with_turn_end_as_eos(chat: ChatFormat) -> Tokenizer:
    """Return the tokenizer for serving: its eos is the token that ends a turn.

    Many programs end an answer at the eos alone. The token that ended a text before stays one of
    `Tokenizer.stop_ids`. A template that writes ``eos_token`` keeps its meaning: there the eos
    stays what it is.
    """
    tokenizer, turn_end = chat.tokenizer, chat.turn_end
    if turn_end in (None, tokenizer.special_names["eos_token"]) or chat.jinja.knows("eos_token"):
        return tokenizer
    served = copy.copy(tokenizer)
    served.special_names = {**tokenizer.special_names, "eos_token": turn_end}
    served.eos_id = tokenizer.control_tokens[turn_end]
    return served
