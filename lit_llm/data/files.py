"""Prompts from files. Imports nothing heavy: commands use it."""

from __future__ import annotations

import json
from pathlib import Path

from lit_llm.errors import UserError


def read_prompts(file: Path) -> list[str]:
    """Prompts of a text file (a line each) or of JSONL rows with "prompt"; empty lines are skipped."""
    try:
        lines = file.read_text(encoding="utf-8").split(
            "\n"
        )  # splitlines would also cut at U+2028 and the like
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.prompts: {file} is not readable ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix == ".jsonl":
            try:
                line = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                line = ""
            if not isinstance(line, str) or not line:
                raise UserError(f"{file}, line {number}: not a JSON object with a text as 'prompt'")
        prompts.append(line)
    if not prompts:
        raise UserError(f"data.prompts: {file} holds no prompt")
    return prompts
