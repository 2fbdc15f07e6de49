"""Rules of llama.cpp that depend on the names of tokens.

They decide which tokens end generation and which tokens remove white space after them. The rules
(``src/llama-vocab.cpp``, release 0.5.0) hold whatever a file says, so writing and reading follow
them.
"""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type

STOP_IDS = "lit_llm.stop_token_ids"
"""lit_llm's own key: every id that ends a text, in order.

GGUF has room for three ids, and llama.cpp finds more by name.
"""
_EOM = "<|eom_id|>"
# A token with one of these names is a control token and ends generation.
_ENDS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", _EOM, "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
))  # fmt: skip
# Phi-3's special tokens remove the white space after them, except the plain ones. llama.cpp aborts
# if one of these four is missing.
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
_PHI3_ALWAYS = "</s>"


def ends_by_name(tokens: list[str]) -> list[int]:
    """Return the ids of tokens that end generation in llama.cpp by name alone, in order."""
    named = {token for token in tokens if token in _ENDS}
    if {"<|return|>", "<|call|>"} <= named or (
        "<|flush|>" in named and named & {"<|call|>", "<|calls|>"}
    ):
        named.discard("<|end|>")
    if "<|tool_response>" in named:
        named.discard("</s>")
    return [index for index, token in enumerate(tokens) if token in named]


def stop_metadata(stop_ids: list[int], tokens: list[str]) -> dict[str, Any]:
    """Return the keys that make llama.cpp end generation at ``stop_ids``; the eos is the first id.

    Raises:
        UserError: there are more ids than llama.cpp has keys for, in addition to those that it
            knows by name.
    """
    eos, *others = stop_ids
    by_name = set(ends_by_name(tokens))
    unknown = [index for index in others if index not in by_name]
    if len(unknown) > 2:
        raise UserError(
            "llama.cpp ends generation at the eos and two more tokens, and the model ends it at "
            f"{', '.join(repr(tokens[index]) for index in unknown)} too: leave all but two out of "
            "eos_token_id in its generation_config.json"
        )
    eom = [index for index in others if tokens[index] == _EOM]
    turn_ends = unknown[:1] or [index for index in others if index not in eom]
    roles = {"eos": [eos], "eot": turn_ends, "eom": unknown[1:] or eom}
    return {
        **{f"tokenizer.ggml.{role}_token_id": ids[0] for role, ids in roles.items() if ids},
        STOP_IDS: stop_ids,
    }


def read_stop_ids(metadata: dict[str, Any], tokens: list[str]) -> list[int]:
    """Return every id that ends a text.

    Files of lit_llm list the ids. In other files these are the eos, eot, eom and the ids known by
    name.
    """
    listed = metadata.get(STOP_IDS)
    if not isinstance(listed, list):
        keys = (f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom"))
        listed = [metadata.get(key) for key in keys] + ends_by_name(tokens)
    return [i for i in dict.fromkeys(listed) if type(i) is int and 0 <= i < len(tokens)]


def stripping(name: str, tokens: list[str], types: list[int]) -> set[str]:
    """Return the tokens that remove the white space after them if general.name is ``name``."""
    if not any(part in name.lower() for part in _PHI3_NAMES):
        return set()
    special = (UNKNOWN, CONTROL, USER_DEFINED)
    found = {token for token, kind in zip(tokens, types, strict=True) if kind in special}
    return (found | {_PHI3_ALWAYS}) - set(_PHI3_PLAIN)


def name_for(stem: str, wanted: set[str], tokens: list[str], types: list[int]) -> str:
    """Return general.name for a file called ``stem``.

    With this name exactly the ``wanted`` tokens remove the white space after them.

    Raises:
        UserError: no name has that effect.
    """
    # A file of another model does not load under Phi-3's name, because it lacks tokens of Phi-3.
    # The name is therefore broken up.
    plain = stem
    for part in _PHI3_NAMES:
        at = plain.lower().find(part)
        while at >= 0:
            plain = f"{plain[: at + 3]} {plain[at + len(part) - 1 :]}"
            at = plain.lower().find(part)
    named = stem if plain != stem else f"{stem} (phi-3)"
    whole = set(tokens) >= {*_PHI3_PLAIN, _PHI3_ALWAYS}
    if wanted and not (whole and wanted == stripping(named, tokens, types)):
        raise UserError(
            f"added token {min(wanted)!r} has rstrip=true, and llama.cpp knows that of Phi-3's "
            "tokens alone: set it to false in tokenizer.json if text after the token may keep its "
            "spaces"
        )
    return named if wanted else plain
