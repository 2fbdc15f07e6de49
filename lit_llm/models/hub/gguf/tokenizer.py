"""Read tokenizers from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece-like BPE ("llama").

A SentencePiece-like vocabulary has scores instead of merges: of all adjacent pairs, the pair whose
merged token has the highest score is merged. Rules of llama.cpp that depend on the names of tokens
are in `specials`, the names of splits in `splits`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.hub.gguf.specials import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ends_by_name,
    read_stop_ids,
    stripping,
)
from lit_llm.models.hub.gguf.splits import NAMES, Split, pre_tokenizer_of, split_named
from lit_llm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

WORD = "\u2581"
"""SentencePiece's mark for a space."""
# Rows of the embedding beyond the vocabulary.
_FILLER = re.compile(r"\[PAD\d+\]_*")
# In characters. Only broken files have longer tokens, and splitting these would take long.
_LONGEST_TOKEN = 512
_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def tokenizer_of(file: GGUFFile) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Encoding with special tokens begins with the bos token if llama.cpp adds one.

    Raises:
        UserError: a kind or a split is unknown, or lists do not fit each other.
    """
    meta, path = file.metadata, file.path
    tokens = _texts(file, "tokenizer.ggml.tokens")
    types = meta.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.token_type does not have one number a token")
    while tokens and types[-1] == UNUSED and _FILLER.fullmatch(tokens[-1]):
        tokens, types = tokens[:-1], types[:-1]
    kind, split = meta.get("tokenizer.ggml.model"), split_named(_split_name(file))
    if kind == "gpt2" and split is not None:
        backend = _byte_level(file, tokens, split)
    elif kind == "llama":
        backend = _sentencepiece(file, tokens, types)
    else:
        raise UserError(
            f"{path}: tokenizer {kind!r} with split {_split_name(file)!r} is not known; known are "
            f"llama, and gpt2 with {', '.join(NAMES)}"
        )
    _add_tokens(file, backend, tokens, types)

    def named(key: str) -> str | None:
        index = meta.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(tokens):
            raise UserError(
                f"{path}: tokenizer.ggml.{key}_token_id is {index!r}, of {len(tokens)} tokens"
            )
        return tokens[index]

    names: dict[str, Any] = {ours: named(theirs) for ours, theirs in _IDS.items()}
    adds_bos = meta.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or (split is not None and split.adds_bos)
    )
    adds_eos = meta.get("tokenizer.ggml.add_eos_token", False)
    _add_around(
        backend,
        names["bos_token"] if adds_bos is True else None,
        names["eos_token"] if adds_eos is True else None,
    )
    template = meta.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    stops = read_stop_ids(meta, tokens)
    return Tokenizer(
        backend,
        **names,
        chat_template=template,
        named_templates=_named_templates(meta),
        generation_config={"eos_token_id": stops} if len(stops) > 1 else None,
    )


def _split_name(file: GGUFFile) -> object:
    """Return tokenizer.ggml.pre, with a warning if it names no split.

    llama.cpp then uses a split that hardly any model was trained with.
    """
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name == "default" and file.metadata.get("tokenizer.ggml.model") == "gpt2":
        warnings.warn(
            f"{file.path}: tokenizer.ggml.pre does not name how the model's text was split; it is "
            "split as llama.cpp does then, which few models were trained with. Take a file that "
            "names it.",
            stacklevel=2,
        )
    return name


def _add_tokens(
    file: GGUFFile, backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]
) -> None:
    """Add control and user-defined tokens, which are found in text before it is split."""
    from tokenizers import AddedToken

    special = (
        {CONTROL, UNKNOWN} if file.metadata.get("tokenizer.ggml.model") == "llama" else {CONTROL}
    )
    ends = set(ends_by_name(tokens))
    name = file.metadata.get("general.name")
    strips = stripping(name if isinstance(name, str) else "", tokens, types)
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        options = {"normalized": False, "rstrip": token in strips}
        if kind in special or index in ends:
            backend.add_special_tokens([AddedToken(token, special=True, **options)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, **options)])


def _add_around(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put ``bos`` before and ``eos`` after a text that is encoded with special tokens.

    transformers then does the same.
    """
    from tokenizers import processors

    before, after = ([] if token is None else [token] for token in (bos, eos))
    if not before + after:
        return
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(token, backend.token_to_id(token)) for token in {*before, *after}],
    )


def _named_templates(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the file's further chat templates: name -> Jinja source."""
    prefix = "tokenizer.chat_template."
    return {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and isinstance(value, str)
    }


def _texts(file: GGUFFile, key: str) -> list[str]:
    found = file.metadata.get(key)
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise UserError(f"{file.path}: {key} is missing or no list of texts")
    return found


def _vocabulary(file: GGUFFile, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")
    return vocabulary


def _bpe(file: GGUFFile, **options: Any) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    try:
        return Backend(models.BPE(**options))
    except Exception as error:
        # The library raises a bare Exception for merges of tokens that do not exist.
        raise UserError(
            f"{file.path}: tokenizer.ggml.merges does not fit the tokens ({error})"
        ) from None


def _byte_level(file: GGUFFile, tokens: list[str], split: Split) -> tokenizers.Tokenizer:
    from tokenizers import decoders, normalizers

    merges = [tuple(merge.split(" ", 1)) for merge in _texts(file, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{file.path}: tokenizer.ggml.merges holds something that is no pair")
    backend = _bpe(
        file,
        vocab=_vocabulary(file, tokens),
        merges=merges,
        ignore_merges=split.ignore_merges,
    )
    backend.pre_tokenizer = pre_tokenizer_of(split)
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    from tokenizers import decoders, normalizers

    vocabulary = _vocabulary(file, tokens)
    scores = file.metadata.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) < len(tokens)
        or not isinstance(scores[0], float)
    ):
        raise UserError(f"{file.path}: tokenizer.ggml.scores does not have one number a token")
    # If a token can be split in several ways, transformers puts first the split whose parts have
    # the highest scores. Engines see no difference.
    splits = [
        (-scores[index], -scores[vocabulary[left]], -scores[vocabulary[right]], left, right)
        for token, index in vocabulary.items()
        if types[index] == NORMAL
        for left, right in token_parts(token, vocabulary)
    ]
    splits.sort(key=lambda split: split[:3])
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        raise UserError(
            f"{file.path}: tokenizer.ggml.unknown_token_id is {unknown!r}, of {len(tokens)} tokens"
        )
    merges = [(left, right) for *_, left, right in splits]
    backend = _bpe(
        file,
        vocab=vocabulary,
        merges=merges,
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefixed = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(WORD)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", WORD)])
    strip = [decoders.Strip(content=" ", left=1)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(WORD, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def token_parts(token: str, vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of tokens that merge into ``token``."""
    for cut in range(1, len(token) if len(token) <= _LONGEST_TOKEN else 0):
        if token[:cut] in vocabulary and token[cut:] in vocabulary:
            yield token[:cut], token[cut:]
