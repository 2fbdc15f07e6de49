"""generation_config.json of a Hugging Face directory: how to sample, and which tokens end a
text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError

NAME = "generation_config.json"
EOS = "eos_token_id"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """All fields of the folder's generation_config.json, whether this package knows them or not.

    If it is missing or names no ``eos_token_id``, config.json's is taken, as in transformers. Empty
    if there is neither file.

    Raises:
        UserError: a file that is no JSON object, or an ``eos_token_id`` that is neither an id nor a
            list of ids.
    """
    fields = read_object(folder / NAME)
    where = folder / NAME
    if (
        fields.get(EOS) is None
        and (ids := read_object(folder / "config.json").get(EOS)) is not None
    ):
        fields[EOS], where = ids, folder / "config.json"
    for token_id in eos_ids(fields):
        if type(token_id) is not int:
            raise UserError(
                f"{where}: {EOS} is {fields[EOS]!r}: it must be a token id or a list of token ids"
            )
    return fields


def eos_ids(fields: dict[str, Any]) -> list[int]:
    """``eos_token_id`` of ``fields`` as a list: the file may hold one id, a list, or nothing."""
    ids = fields.get(EOS)
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def with_eos_ids(fields: dict[str, Any], ids: Iterable[int]) -> dict[str, Any]:
    """``fields`` with those of ``ids`` appended to its ``eos_token_id`` that it lacks."""
    known = eos_ids(fields)
    union = list(dict.fromkeys([*known, *ids]))
    if union == known:
        return fields
    changed = {**fields, EOS: union if len(union) > 1 else union[0]}
    changed.pop("_from_model_config", None)  # transformers 4 would take config.json's id again
    return changed


def write_generation_config(folder: Path, fields: dict[str, Any]) -> None:
    """Write ``fields`` as the folder's generation_config.json."""
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; empty if there is no such file. Raises UserError if it holds
    none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not valid JSON ({said})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not an object")
    return content
