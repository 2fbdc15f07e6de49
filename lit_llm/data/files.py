"""Reader of prompt files. It imports nothing heavy, because commands use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_llm.data.chat.messages import check_characters
from lit_llm.errors import UserError

# Keys that would change the answer but are not sent to the model.
_NOT_SENT = (
    "messages",
    "conversations",
    "system",
    "system_prompt",
    "history",
    "tools",
    "input",
    "context",
)


def read_prompts(file: Path) -> list[str]:
    """Read the prompts of a file; empty lines are skipped.

    A text file has one prompt per line. A JSONL file has rows with the key "prompt". A .json file
    is an array of such rows or of texts.

    Raises:
        UserError: the file is unreadable, or a row has no text as "prompt", or it has a further key
            that would belong to the prompt. The message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.prompts: {file} is not readable ({error})") from None
    kind = file.suffix.lower()
    if kind == ".json":
        prompts = _of_array(file, text)
    else:
        # splitlines would also split at U+2028 and similar characters
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        in_rows = kind in (".jsonl", ".ndjson")
        prompts = [_of_row(file, n, line) if in_rows else line for n, line in lines]
    if not prompts:
        raise UserError(f"data.prompts: {file} holds no prompt")
    return prompts


def _of_row(file: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    place = f"{file}, line {number}"
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object with a text as 'prompt'")
    return _prompt_of(place, row)


def _of_array(file: Path, text: str) -> list[str]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.prompts: {file} is not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(
            f"data.prompts: {file} is not an array of prompts; use .jsonl for one per line"
        )
    return [
        _prompt_of(f"{file}, element {number}", row if isinstance(row, dict) else {"prompt": row})
        for number, row in enumerate(rows, 1)
    ]


def _prompt_of(place: str, row: dict[str, Any]) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"{place}: neither a text nor an object with a text as 'prompt'")
    if unused := [key for key in _NOT_SENT if row.get(key)]:
        raise UserError(f"{place}: {unused[0]!r} is not sent to the model, only 'prompt' is")
    check_characters(prompt, f"{place}: 'prompt'")
    return prompt
