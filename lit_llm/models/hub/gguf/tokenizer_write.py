"""Write tokenizers as GGUF metadata, so that llama.cpp and transformers give a text the same ids.

A file has no normalizers, no patterns and no flags of tokens. What it cannot express is refused by
name. If llama.cpp differs only on rare texts, and for every file of the kind, the file is written
with a note.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.hub.gguf.specials import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    name_for,
    stop_metadata,
)
from lit_llm.models.hub.gguf.splits import flat, split_of
from lit_llm.models.hub.gguf.tokenizer import WORD, token_parts
from lit_llm.models.tokenizer import Tokenizer

_NFC_NOTE = (
    "llama.cpp does not compose characters (Unicode NFC) before it splits a text, and this "
    "tokenizer does: the ids of texts with decomposed accents differ"
)
_PREFIX_NOTE = (
    "llama.cpp puts a space before every text between control tokens, and this tokenizer "
    "(Metaspace, prepend_scheme={scheme!r}) {otherwise}: the ids of such texts differ"
)
_PREPEND = {"type": "Prepend", "prepend": WORD}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": WORD}
_GEMMA_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def tokenizer_metadata(
    tokenizer: Tokenizer, num_tokens: int, eos_id: int | None, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the tokenizer.* keys of a file with its general.name, and notes.

    general.name decides how some tokens are read.

    Args:
        tokenizer: to write.
        num_tokens: rows of the model's embedding. Ids without a token get an unused token.
        eos_id: the model's eos id, for a tokenizer that names none.
        name: the file's name, from which general.name is made.

    Returns:
        The keys that are not None, and how llama.cpp differs on rare texts, one sentence each.

    Raises:
        UserError: GGUF cannot express how the tokenizer splits text, or it has more tokens than the
            model, or no eos.
    """
    if tokenizer.vocab_size > num_tokens:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {num_tokens}: it is "
            "another model's"
        )
    spec = json.loads(tokenizer.backend.to_str())
    _check_model(spec["model"])
    texts, types = _tokens(tokenizer, spec, num_tokens)
    if spec["model"].get("byte_fallback"):
        kind, notes = _sentencepiece(spec, texts, types)
    else:
        kind, notes = _byte_level(spec)
    if len(set(texts)) < len(texts):
        twice = next(text for index, text in enumerate(texts) if text in texts[:index])
        raise UserError(f"two tokens would be written as {twice!r}, which llama.cpp does not load")
    stops = _stop_ids(tokenizer, eos_id, num_tokens)
    values = {
        "general.name": name_for(name, _rstripped(spec), texts, types),
        **{f"tokenizer.ggml.{key}": value for key, value in kind.items()},
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{k}": v for k, v in _around(tokenizer, spec, stops[0]).items()},
        **stop_metadata(stops, texts),
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.chat_template": tokenizer.chat_template,
        **{f"tokenizer.chat_template.{k}": v for k, v in tokenizer.named_templates.items()},
        "tokenizer.chat_templates": list(tokenizer.named_templates) or None,
    }
    return {key: value for key, value in values.items() if value is not None}, notes


def _stop_ids(tokenizer: Tokenizer, eos_id: int | None, num_tokens: int) -> list[int]:
    """Return every id that ends a text, the eos first.

    Raises:
        UserError: there is none.
    """
    stops = tokenizer.stop_ids
    if not stops and eos_id is not None and 0 <= eos_id < num_tokens:
        stops = [eos_id]
    if not stops:
        raise UserError(
            "the tokenizer names no eos token, and llama.cpp would take another one for it: name "
            "one as eos_token in tokenizer_config.json"
        )
    if max(stops) >= num_tokens:
        raise UserError(
            f"eos_token_id {max(stops)} of generation_config.json is beyond the model's "
            f"{num_tokens} tokens"
        )
    return stops


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise UserError(
            f"a tokenizer of kind {model.get('type')} cannot be written as GGUF; BPE can"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(
                f"GGUF cannot express the tokenizer's {key}={model[key]!r} (model.{key} in "
                "tokenizer.json)"
            )


def _tokens(
    tokenizer: Tokenizer, spec: dict[str, Any], num_tokens: int
) -> tuple[list[str], list[int]]:
    """Return text and type of every id.

    Raises:
        UserError: an added token has a flag that GGUF cannot express.
    """
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    texts, types = [], [UNUSED] * num_tokens
    for index in range(num_tokens):
        filler = f"[PAD{index}]"
        while filler in vocabulary:  # llama.cpp loads no file in which a text occurs twice
            filler += "_"
        texts.append(filler)
    for token, index in vocabulary.items():
        texts[index], types[index] = token, NORMAL
    for token in spec["added_tokens"]:
        for flag in ("lstrip", "single_word"):
            if token[flag]:
                raise UserError(
                    f"GGUF cannot express that added token {token['content']!r} has {flag}=true: "
                    "set it to false in tokenizer.json if text around the token may be read "
                    "without it"
                )
        control = token["special"] or token["content"] in tokenizer.control_tokens
        types[token["id"]] = CONTROL if control else USER_DEFINED
    return texts, types


def _rstripped(spec: dict[str, Any]) -> set[str]:
    return {token["content"] for token in spec["added_tokens"] if token["rstrip"]}


def _around(tokenizer: Tokenizer, spec: dict[str, Any], eos_id: int) -> dict[str, Any]:
    """Return the bos, whether it is put before a text, and whether the eos is put after it.

    Raises:
        UserError: the tokenizer puts something else there.
    """
    before, after = _put_around(spec)
    if len(before) > 1 or after not in ([], [eos_id]):
        names = [tokenizer.backend.id_to_token(index) for index in before + after]
        raise UserError(
            f"the tokenizer's post_processor puts {', '.join(map(repr, names))} around a text; "
            "llama.cpp can put one token before it and the eos after it"
        )
    return {
        "bos_token_id": before[0] if before else tokenizer.bos_id,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
    }


def _put_around(spec: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids that the post-processor of a tokenizer.json puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for step in flat(spec.get("post_processor"), "processors"):
        if step["type"] in ("BertProcessing", "RobertaProcessing"):
            before, after = [step["cls"][1], *before], [*after, step["sep"][1]]
        elif step["type"] == "TemplateProcessing":
            at = next(i for i, part in enumerate(step["single"]) if "Sequence" in part)
            ids = [
                step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
                for part in step["single"]
                if "SpecialToken" in part
            ]
            before = [*itertools.chain(*ids[:at]), *before]
            after = [*after, *itertools.chain(*ids[at:])]
    return before, after


def _merges(spec: dict[str, Any]) -> list[tuple[str, ...]]:
    merges = spec["model"]["merges"]
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in merges]


def _as_json(step: dict[str, Any]) -> str:
    return json.dumps(step, ensure_ascii=False)[:120]


def _byte_level(spec: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    normalizers = flat(spec.get("normalizer"), "normalizers")
    for step in normalizers:
        if step["type"] != "NFC":
            raise UserError(f"GGUF cannot express the tokenizer's normalizer {_as_json(step)}")
    if not spec["model"]["merges"]:
        raise UserError(
            "the tokenizer has no merges, and llama.cpp loads no byte-level one without"
        )
    nfc = bool(normalizers)
    split = split_of(spec, nfc)
    values = {
        "model": "gpt2",
        "pre": split.names[0],
        "merges": [" ".join(merge) for merge in _merges(spec)],
    }
    return values, [_NFC_NOTE] if nfc else []


def _sentencepiece(
    spec: dict[str, Any], texts: list[str], types: list[int]
) -> tuple[dict[str, Any], list[str]]:
    """Return keys with scores that make llama.cpp merge in the tokenizer's order, and notes.

    Byte and unknown tokens are marked in ``types``.
    """
    prefixed, notes = _prefix(spec)
    _plain_marks(spec, texts, types)
    for index, token in enumerate(texts):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[index] = BYTE
    if types.count(BYTE) != 256:
        raise UserError(
            f"the tokenizer has {types.count(BYTE)} of the 256 byte tokens <0x00> to <0xFF>, and "
            "llama.cpp needs all"
        )
    scores = _scores(spec, texts, types)
    values: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": prefixed,
    }
    unknown = spec["model"].get("unk_token")
    if unknown is not None:
        index = texts.index(unknown)
        types[index], values["unknown_token_id"] = UNKNOWN, index
    return values, notes


def _prefix(spec: dict[str, Any]) -> tuple[bool, list[str]]:
    """Return whether a text gets a space before it, and notes.

    Raises:
        UserError: the tokenizer changes or splits text in another way than SentencePiece.
    """
    normalizers = flat(spec.get("normalizer"), "normalizers")
    splitters = flat(spec.get("pre_tokenizer"), "pretokenizers")
    if _REPLACE in normalizers:  # no space is left to split at
        splitters = [step for step in splitters if step != _GEMMA_SPLIT]
    if normalizers in ([_PREPEND, _REPLACE], [_REPLACE, _PREPEND], [_REPLACE]) and not splitters:
        return _PREPEND in normalizers, []
    if len(splitters) == 1 and splitters[0]["type"] == "Metaspace" and not normalizers:
        step, scheme = splitters[0], splitters[0]["prepend_scheme"]
        if step["replacement"] == WORD and not step["split"]:
            if scheme == "never":
                return False, []
            rule = (
                "does so at the beginning alone" if scheme == "first" else "does not before a space"
            )
            return True, [_PREFIX_NOTE.format(scheme=scheme, otherwise=rule)]
    for kind, steps in (("normalizer", normalizers), ("pre_tokenizer", splitters)):
        for step in steps:
            if step not in (_PREPEND, _REPLACE):
                raise UserError(f"GGUF cannot express the tokenizer's {kind} {_as_json(step)}")
    raise UserError(
        "GGUF cannot express how this tokenizer marks spaces (normalizer in tokenizer.json)"
    )


def _plain_marks(spec: dict[str, Any], texts: list[str], types: list[int]) -> None:
    """Turn added tokens that hold the mark of a space into tokens that llama.cpp finds.

    Gemma's tokens for runs of spaces are an example. llama.cpp looks for user-defined tokens in the
    original text, with its spaces, and outputs them as written. If the tokenizer looks for them
    after spaces became marks, they are written with spaces. Otherwise they become normal tokens,
    which merges must produce.

    Raises:
        UserError: neither is possible.
    """
    made = {"".join(merge) for merge in _merges(spec)}
    for token in spec["added_tokens"]:
        index, text = token["id"], token["content"]
        if types[index] != USER_DEFINED or WORD not in text:
            continue
        if token["normalized"] and flat(spec.get("normalizer"), "normalizers") == [_REPLACE]:
            texts[index] = text.replace(WORD, " ")
        elif text in made:
            types[index] = NORMAL
        else:
            raise UserError(
                f"GGUF cannot express added token {text!r}: it holds the mark of a space, and no "
                "merge makes it"
            )


def _scores(spec: dict[str, Any], texts: list[str], types: list[int]) -> list[float]:
    """Return the score of each token.

    Raises:
        UserError: no scores give the order of the tokenizer's merges.
    """
    merges = _merges(spec)
    by_token: dict[str, list[int]] = {}
    for rank, merge in enumerate(merges):
        by_token.setdefault("".join(merge), []).append(rank)
    vocabulary = {token: index for index, token in enumerate(texts)}
    scores = [-float(len(merges))] * len(texts)
    for index, token in enumerate(texts):
        if types[index] != NORMAL:
            continue
        ranks = by_token.get(token, [])
        # One score stands for all ways to build the token. All these merges must exist and have
        # consecutive ranks.
        if len(ranks) != len(list(token_parts(token, vocabulary))) or ranks != list(
            range(*_span(ranks))
        ):
            raise UserError(
                f"GGUF cannot express this tokenizer's merges: {token!r} is not made at one rank, "
                "of any parts"
            )
        if ranks:
            scores[index] = -float(ranks[0])
    return scores


def _span(ranks: list[int]) -> tuple[int, int]:
    return (ranks[0], ranks[-1] + 1) if ranks else (0, 0)
