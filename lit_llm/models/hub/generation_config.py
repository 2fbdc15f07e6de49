"""generation_config.json of a Hugging Face directory: sampling settings and stop tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError

NAME = "generation_config.json"
EOS = "eos_token_id"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Return all fields of the folder's generation_config.json, also those unknown to this package.

    If it is missing or names no ``eos_token_id``, the one of config.json is taken, as in
    transformers. The result is empty if neither file exists.

    Raises:
        UserError: a file is no JSON object, or an ``eos_token_id`` is neither an id nor a list of
            ids.
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
    """Return ``eos_token_id`` of ``fields`` as a list; it may be one id, a list or missing."""
    ids = fields.get(EOS)
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def with_eos_ids(fields: dict[str, Any], ids: Iterable[int]) -> dict[str, Any]:
    """Return ``fields`` with the missing ``ids`` appended to its ``eos_token_id``."""
    known = eos_ids(fields)
    union = list(dict.fromkeys([*known, *ids]))
    if union == known:
        return fields
    changed = {**fields, EOS: union if len(union) > 1 else union[0]}
    # With this key transformers 4 would use the id of config.json instead.
    changed.pop("_from_model_config", None)
    return changed


def write_generation_config(folder: Path, fields: dict[str, Any]) -> None:
    """Write ``fields`` as the folder's generation_config.json."""
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``; empty if there is no such file.

    Raises:
        UserError: the file holds no JSON object.
    """
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
