"""Prompts from files. Imports nothing heavy: commands use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError


def read_prompts(file: Path) -> list[str]:
    """Prompts of a file; empty lines are skipped.

    A text file has one a line. Of JSONL, rows have it as "prompt". A .json file is an array of such
    rows, or of texts.

    Raises:
        UserError: the file cannot be read, or holds something else; names the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.prompts: {file} is not readable ({error})") from None
    kind = file.suffix.lower()
    if kind == ".json":
        prompts = _of_array(file, text)
    else:
        # splitlines would also cut at U+2028 and the like
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        in_rows = kind in (".jsonl", ".ndjson")
        prompts = [_of_row(file, n, line) if in_rows else line for n, line in lines]
    if not prompts:
        raise UserError(f"data.prompts: {file} holds no prompt")
    return prompts


def _of_row(file: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"{file}, line {number}: not a JSON object with a text as 'prompt'")
    return prompt


def _of_array(file: Path, text: str) -> list[str]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"data.prompts: {file} is not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"data.prompts: {file} is no array of prompts; one a line is .jsonl")
    prompts: list[Any] = [row.get("prompt") if isinstance(row, dict) else row for row in rows]
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str) or not prompt:
            raise UserError(
                f"{file}, element {number}: neither a text nor an object with one as 'prompt'"
            )
    return prompts
