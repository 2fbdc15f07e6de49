"""Tokenizers in GGUF metadata, both ways: byte-level BPE ("gpt2") and SentencePiece-like BPE ("llama").

A file names how text is split before merging and does not carry the pattern, so the names are a table here. A
SentencePiece-like vocabulary has scores in place of merges: of all pairs, the one whose token scores highest merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.models.gguf_file import GGUFFile
from lit_llm.models.tokenizer import SPLIT_PATTERN, Tokenizer, begin_with

if TYPE_CHECKING:
    import tokenizers

_DIGITS, _GPT2, _LLAMA3, _QWEN2 = (
    "digits, then GPT-2's pattern",
    "GPT-2's pattern",
    "Llama 3's",
    "Qwen 2's",
)
# Qwen's differs from Llama 3's in taking digits one by one.
_PATTERNS = {_LLAMA3: SPLIT_PATTERN, _QWEN2: SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")}
# tokenizer.ggml.pre -> how that vocabulary's text is split before merging; the first of each kind is written
_SPLITS = {
    "smollm": _DIGITS, "command-r": _DIGITS, "refact": _DIGITS, "starcoder": _DIGITS,
    "gpt-2": _GPT2, "default": _GPT2, "olmo": _GPT2,
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "qwen2": _QWEN2, "stablelm2": _QWEN2,
}  # fmt: skip
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = (
    1,
    2,
    3,
    4,
    5,
    6,
)  # tokenizer.ggml.token_type
_FILLER = re.compile(r"\[PAD\d+\]")  # rows of the embedding beyond the vocabulary
_WORD = "\u2581"  # SentencePiece's mark of a space
_LONGEST_TOKEN = (
    512  # characters; longer ones are in broken files only, and would take long to split
)
_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        UserError: a kind or a split that is not known, or lists that do not fit each other.
    """
    meta, path = file.metadata, file.path
    tokens = _texts(file, "tokenizer.ggml.tokens")
    types = meta.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.token_type does not have one number a token")
    while tokens and types[-1] == _UNUSED and _FILLER.fullmatch(tokens[-1]):
        tokens, types = tokens[:-1], types[:-1]
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and isinstance(pre, str) and pre in _SPLITS:
        backend = _byte_level(file, tokens, types, _SPLITS[pre])
    elif kind == "llama":
        backend = _sentencepiece(file, tokens, types)
    else:
        raise UserError(
            f"{path}: tokenizer {kind!r} with split {pre!r} is not known; known are llama, and gpt2 with "
            f"{', '.join(_SPLITS)}"
        )
    from tokenizers import AddedToken

    special = (_CONTROL, _UNKNOWN) if kind == "llama" else (_CONTROL,)
    for token, its_type in zip(tokens, types, strict=True):
        if its_type in special:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif its_type == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])

    def named(key: str) -> str | None:
        index = meta.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(tokens):
            raise UserError(
                f"{path}: tokenizer.ggml.{key}_token_id is {index!r}, of {len(tokens)} tokens"
            )
        return tokens[index]

    template = meta.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    names: dict[str, Any] = {ours: named(theirs) for ours, theirs in _IDS.items()}
    # Where the file does not say, llama.cpp puts a bos before the texts of these two.
    usual = kind == "llama" or _SPLITS.get(pre) == _LLAMA3
    bos = names["bos_token"]
    if bos is not None and meta.get("tokenizer.ggml.add_bos_token", usual):
        begin_with(backend, bos)
    return Tokenizer(backend, **names, chat_template=template)


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
    except (
        Exception
    ) as error:  # the library raises a bare Exception for merges of tokens that are not there
        raise UserError(
            f"{file.path}: tokenizer.ggml.merges does not fit the tokens ({error})"
        ) from None


def _byte_level(
    file: GGUFFile, tokens: list[str], types: list[int], split: str
) -> tokenizers.Tokenizer:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in _texts(file, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{file.path}: tokenizer.ggml.merges holds something that is no pair")
    backend = _bpe(
        file, vocab=_vocabulary(file, tokens), merges=merges, ignore_merges=split == _LLAMA3
    )
    splitters: list[Any] = []
    if split in _PATTERNS:
        splitters = [pre_tokenizers.Split(Regex(_PATTERNS[split]), behavior="isolated")]
    elif split == _DIGITS:
        splitters = [pre_tokenizers.Digits(individual_digits=True)]
    by_pattern = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=split in (_DIGITS, _GPT2)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splitters, by_pattern])
    if split == _QWEN2:
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
    # Of one token's splits, transformers puts first the one whose parts score highest; engines see no difference.
    splits = [
        (-scores[index], -scores[vocabulary[left]], -scores[vocabulary[right]], left, right)
        for token, index in vocabulary.items()
        if types[index] == _NORMAL
        for left, right in _parts(token, vocabulary)
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
    steps = [normalizers.Prepend(_WORD)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _WORD)])
    strip = [decoders.Strip(content=" ", left=1)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_WORD, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _parts(token: str, vocabulary: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of tokens that ``token`` can be merged of."""
    for cut in range(1, len(token) if len(token) <= _LONGEST_TOKEN else 0):
        if token[:cut] in vocabulary and token[cut:] in vocabulary:
            yield token[:cut], token[cut:]


def tokenizer_metadata(tokenizer: Tokenizer, num_tokens: int) -> dict[str, Any]:
    """The tokenizer.* keys of a file, without those that are None.

    Args:
        tokenizer: to write.
        num_tokens: rows of the model's embedding: what the vocabulary lacks is filled with unused tokens.

    Raises:
        UserError: GGUF has no name for how it splits text, or it has more tokens than the model.
    """
    if tokenizer.vocab_size > num_tokens:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {num_tokens}: it is another model's"
        )
    spec = json.loads(tokenizer._backend.to_str())
    model = spec["model"]
    if model.get("type") != "BPE":
        raise UserError(
            f"a tokenizer of kind {model.get('type')} cannot be written as GGUF; BPE can"
        )
    texts, types = [f"[PAD{i}]" for i in range(num_tokens)], [_UNUSED] * num_tokens
    for token, index in tokenizer._backend.get_vocab(with_added_tokens=True).items():
        texts[index], types[index] = token, _NORMAL
    for token in spec["added_tokens"]:
        control = token["special"] or token["content"] in tokenizer.control_tokens
        types[token["id"]] = _CONTROL if control else _USER_DEFINED
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        kind = _sentencepiece_metadata(spec, texts, types, merges)
    else:
        kind = {
            "model": "gpt2",
            "pre": _split_name(spec),
            "merges": [" ".join(merge) for merge in merges],
        }
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    values = {
        **{f"tokenizer.ggml.{key}": value for key, value in kind.items()},
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()},
        "tokenizer.ggml.add_bos_token": bool(tokenizer.document_start),
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    return {key: value for key, value in values.items() if value is not None}


def _split_name(spec: dict[str, Any]) -> str:
    """tokenizer.ggml.pre of a byte-level tokenizer.json."""
    outer = spec.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    found = None
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            found = _GPT2
        elif (
            kinds == ["Digits", "ByteLevel"]
            and steps[0].get("individual_digits")
            and last.get("use_regex", True)
        ):
            found = _DIGITS
        elif (
            kinds == ["Split", "ByteLevel"]
            and not last.get("use_regex", True)
            and not steps[0].get("invert")
        ):
            pattern = steps[0].get("pattern", {}).get("Regex")
            found = next((split for split, known in _PATTERNS.items() if known == pattern), None)
    # Engines take a piece that is a token whole for Llama 3's split and for no other.
    if found is None or bool(spec["model"].get("ignore_merges")) != (found == _LLAMA3):
        raise UserError(
            f"GGUF has no name for how this tokenizer splits text ({' + '.join(map(str, kinds))}); known are "
            f"{', '.join(dict.fromkeys(_SPLITS.values()))}"
        )
    return next(name for name, split in _SPLITS.items() if split == found)


def _sentencepiece_metadata(
    spec: dict[str, Any], texts: list[str], types: list[int], merges: list[tuple[str, ...]]
) -> dict[str, Any]:
    """Scores such that engines merge in the order of ``merges``; marks byte and unknown tokens in ``types``."""
    normalizer = json.dumps(spec.get("normalizer"), ensure_ascii=False)
    splitter = spec.get("pre_tokenizer") or {}
    scheme = splitter.get(
        "prepend_scheme", "always" if splitter.get("add_prefix_space") else "never"
    )
    metaspace = splitter.get("type") == "Metaspace"
    if splitter and not (metaspace and not splitter.get("split", True)):
        raise UserError(
            f"GGUF has no name for how this tokenizer splits text ({splitter.get('type')})"
        )
    by_token: dict[str, list[int]] = {}
    for rank, merge in enumerate(merges):
        by_token.setdefault("".join(merge), []).append(rank)
    vocabulary = {token: index for index, token in enumerate(texts)}
    scores = [-float(len(merges))] * len(texts)
    for index, token in enumerate(texts):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[index] = _BYTE
        if types[index] != _NORMAL:
            continue
        ranks = by_token.get(token, [])
        # A score stands for all ways to make the token: they must all be there, and follow each other.
        if len(ranks) != len(list(_parts(token, vocabulary))) or ranks != list(
            range(*_span(ranks))
        ):
            raise UserError(
                f"GGUF cannot say this tokenizer's merges: {token!r} is not made at one rank, of any parts"
            )
        if ranks:
            scores[index] = -float(ranks[0])
    unknown = spec["model"].get("unk_token")
    values: dict[str, Any] = {"model": "llama", "pre": "default", "scores": scores}
    if unknown is not None:
        index = texts.index(unknown)
        types[index], values["unknown_token_id"] = _UNKNOWN, index
    values["add_space_prefix"] = '"Prepend"' in normalizer or (metaspace and scheme != "never")
    return values


def _span(ranks: list[int]) -> tuple[int, int]:
    return (ranks[0], ranks[-1] + 1) if ranks else (0, 0)
