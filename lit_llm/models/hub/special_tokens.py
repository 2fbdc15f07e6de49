"""Special tokens in the files beside a tokenizer.json, read as transformers 5 reads them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.models.hub.generation_config import read_object

if TYPE_CHECKING:
    import tokenizers

# transformers' SPECIAL_TOKENS_ATTRIBUTES, in its order.
STANDARD_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass
class SpecialTokens:
    """The special tokens that the files name.

    Attributes:
        names: "eos_token", or a model's own name such as "image_token" -> the token's text.
        names_eos: whether a file has the key ``eos_token``, with a token or with null.
    """

    names: dict[str, str]
    names_eos: bool


def add_special_tokens(backend: tokenizers.Tokenizer, folder: Path) -> SpecialTokens:
    """Add to ``backend`` the tokens that only the settings files of ``folder`` have.

    These are ``added_tokens_decoder``, the named tokens and the list of extra special tokens in
    tokenizer_config.json. If it has no ``added_tokens_decoder``, the tokens in
    special_tokens_map.json and added_tokens.json are added too. As in transformers 5
    (tokenization_utils_base.py, tokenization_utils_tokenizers.py), tokens with an id in the files
    come first, in the order of their ids.

    Raises:
        UserError: a file is malformed, or a new token would get another id than the file gives.
    """
    file = folder / "tokenizer_config.json"
    settings = read_object(file)
    special_map = {k: v for k, v in read_object(folder / "special_tokens_map.json").items() if v}
    names_eos = "eos_token" in settings or "eos_token" in special_map
    fallback: dict[str, str] = {}
    if settings.get("added_tokens_decoder") is None:
        settings = {**settings, **special_map}
    else:  # here transformers does not read special_tokens_map.json, so it adds no token from it
        fallback = {
            key: content
            for key in ("bos_token", "eos_token", "pad_token")
            if (content := token_name(special_map.get(key))) is not None
            and backend.token_to_id(content) is not None
        }
    named, extra = _named(file, settings), _extra(file, settings)
    _add_with_ids(backend, folder, settings, {_content(t) for t in (*named.values(), *extra)})
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    new = [_added(file, t, True) for t in (*named.values(), *extra) if _content(t) not in known]
    if new:
        backend.add_special_tokens(new)
    names = {key: _content(value) for key, value in named.items()}
    return SpecialTokens({**fallback, **names}, names_eos)


def token_name(entry: object) -> str | None:
    """Return the text of a token in a settings file: the entry itself or its "content"."""
    name = entry.get("content") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) else None


def settings_of_names(names: dict[str, str | None]) -> dict[str, Any]:
    """Return the fields of tokenizer_config.json that hold ``names``.

    A key that does not end in ``_token`` is read back only from ``extra_special_tokens``.
    """
    given = {key: name for key, name in names.items() if name is not None}
    top = {key: name for key, name in given.items() if key.endswith("_token")}
    others = {key: name for key, name in given.items() if key not in top}
    return {**top, **({"extra_special_tokens": others} if others else {})}


def _named(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return name -> entry of every named token: the standard names first, then the model's own."""
    found = {
        key: entry
        for key in STANDARD_NAMES
        if (entry := settings.get(key)) is not None and token_name(entry)
    }
    for key, entry in settings.items():
        if key.endswith("_token") and key not in STANDARD_NAMES and token_name(entry):
            found[key] = entry
    for group in ("model_specific_special_tokens", "extra_special_tokens"):
        entries = settings.get(group)
        if not isinstance(entries, dict):
            continue
        for key, entry in entries.items():
            if not token_name(entry):
                raise UserError(f"{file}: {group}: {key} is {entry!r}, it must be a token's text")
            found[key] = entry
    return found


def _extra(file: Path, settings: dict[str, Any]) -> list[Any]:
    """Return special tokens without a name; transformers 4 calls them additional_special_tokens."""
    key = "extra_special_tokens"
    if not settings.get(key):
        key = "additional_special_tokens"
    entries = settings.get(key) or []
    if isinstance(entries, dict) and key == "extra_special_tokens":
        return []  # a mapping holds named tokens, see `_named`
    if not isinstance(entries, list) or not all(token_name(entry) for entry in entries):
        raise UserError(f"{file}: {key} must be a list of tokens")
    return entries


def _add_with_ids(
    backend: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any], special: set[str]
) -> None:
    """Add the tokens whose id is in a file, and check that they get this id."""
    file, key = folder / "tokenizer_config.json", "added_tokens_decoder"
    written: dict[int, Any] = {}
    try:
        if settings.get(key) is not None:
            written = {int(index): _added(file, e) for index, e in settings[key].items()}
        else:
            file, key = folder / "added_tokens.json", "the file"
            for content, index in read_object(file).items():
                written[int(index)] = _added(file, content, content in special)
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{file}: {key} must map tokens and their whole-number ids") from None
    there = backend.get_vocab(with_added_tokens=True)
    for index, token in sorted(written.items()):
        backend.add_tokens([token])
        got = backend.token_to_id(token.content)
        if got == index:
            continue
        if token.content not in there:
            raise UserError(
                f"{file}: gives the token {token.content!r} the id {index}, but after the tokens "
                f"of tokenizer.json it gets {got}: save tokenizer.json again with this token"
            )
        warnings.warn(
            f"{file}: gives the token {token.content!r} the id {index}; tokenizer.json's {got} is "
            "used",
            stacklevel=2,
        )


def _content(entry: Any) -> str:
    content = token_name(entry)
    assert content is not None
    return content


def _added(file: Path, entry: Any, special: bool | None = None) -> tokenizers.AddedToken:
    """Return the token of an entry; ``special`` None keeps the entry's own flag."""
    from tokenizers import AddedToken

    if not token_name(entry):
        raise UserError(f"{file}: {entry!r} is not a token: it has no text 'content'")
    flags = {k: v for k, v in entry.items() if k in _FLAGS} if isinstance(entry, dict) else {}
    if not all(isinstance(value, bool) for value in flags.values()):
        raise UserError(f"{file}: {entry!r}: {', '.join(_FLAGS)} must be true or false")
    if special is not None:
        flags["special"] = special
    return AddedToken(_content(entry), **flags)
