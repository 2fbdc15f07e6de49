"""Add tokens to a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

_IN_BRACKETS = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


def is_spelled_as_control(token: str) -> bool:
    """Whether a token to add becomes a control token: one in angle or square brackets does."""
    return _IN_BRACKETS.fullmatch(token) is not None


def with_tokens(
    tokenizer: Tokenizer, tokens: Iterable[str], control: Iterable[str] = ()
) -> tuple[Tokenizer, dict[str, int]]:
    """Return a tokenizer with more tokens, and the new ones with their ids.

    A token in brackets (``<|tool|>``, ``[INST]``) becomes a control token, which only templates
    write. Any other is found in text, also inside of words. New ids follow the largest id. A token
    that exists stays as it is, except that those of ``control`` become control tokens.

    Args:
        tokenizer: does not change.
        tokens: to add.
        control: further tokens, which become control tokens whatever their spelling.

    Raises:
        UserError: the tokenizer's ids have holes, so that a new token would get an id in use.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.backend.to_str())
    before = backend.get_vocab(with_added_tokens=True)
    marked = dict.fromkeys(control, True)
    wanted = {token: is_spelled_as_control(token) for token in tokens if token not in before}
    used = set(before.values())
    added: dict[str, int] = {}
    for token, special in {**wanted, **marked}.items():
        # Not normalized: the token is looked for in the text as it is written.
        backend.add_tokens([AddedToken(token, special=special, normalized=False)])
        index = backend.token_to_id(token)
        if index is None or token in before:
            continue
        if index in used:
            raise UserError(
                f"data.add_tokens: the tokenizer's ids have holes, and {token!r} would get the id "
                f"{index}, which {tokenizer.backend.id_to_token(index)!r} has; save the tokenizer "
                "with the token in its tokenizer.json"
            )
        added[token] = index
        used.add(index)
    if not added and not marked:
        return tokenizer, {}
    names = dict(tokenizer.special_names)
    three = {name: names.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    made = Tokenizer(
        backend,
        **three,
        further_names={key: name for key, name in names.items() if name is not None},
        chat_template=tokenizer.chat_template,
        named_templates=tokenizer.named_templates,
        generation_config=tokenizer.generation_config,
    )
    return made, added


def check_tokens(tokens: Iterable[str]) -> None:
    """Check the tokens of ``data.add_tokens``.

    Raises:
        UserError: one is empty, only white space, or there twice.
    """
    seen = set()
    for token in tokens:
        if not token.strip():
            raise UserError(f"data.add_tokens: {token!r} is no token; leave it out")
        if token in seen:
            raise UserError(f"data.add_tokens: {token!r} is there twice; leave one out")
        seen.add(token)


def check_extends(own: Tokenizer, base: Tokenizer, folder: Path) -> None:
    """Check that an adapter's tokenizer is its base's with tokens added.

    Args:
        own: the adapter's tokenizer.
        base: the tokenizer of the model that gets the adapter.
        folder: of the adapter, for the message.

    Raises:
        UserError: an id has another token; the message names it.
    """
    there = own.backend.get_vocab(with_added_tokens=True)
    wanted = base.backend.get_vocab(with_added_tokens=True)
    for token, index in sorted(wanted.items(), key=lambda item: item[1]):
        if there.get(token) != index:
            raise UserError(
                f"{folder}: it was trained with another tokenizer than the model's: id {index} is "
                f"{token!r} in the model's and {own.backend.id_to_token(index)!r} in the adapter's"
            )
