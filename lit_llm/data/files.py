"""Prompts from files. Imports nothing heavy: commands use it."""

from __future__ import annotations

import json
from pathlib import Path

from lit_llm.data.messages import check_characters
from lit_llm.errors import UserError

# What would change the answer and is not sent.
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
    """Prompts of a text file (a line each) or of JSONL rows with "prompt"; empty lines are skipped.

    Raises:
        UserError: a row without a text as "prompt", or with a key beside it that belongs to the prompt.
    """
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
                row = json.loads(line)
                line = row["prompt"]
            except (ValueError, KeyError, TypeError):
                line = ""
            if not isinstance(line, str) or not line:
                raise UserError(f"{file}, line {number}: not a JSON object with a text as 'prompt'")
            if unused := [key for key in _NOT_SENT if row.get(key)]:
                raise UserError(
                    f"{file}, line {number}: {unused[0]!r} is not sent, 'prompt' alone is"
                )
            check_characters(line, f"{file}, line {number}: 'prompt'")
        prompts.append(line)
    if not prompts:
        raise UserError(f"data.prompts: {file} holds no prompt")
    return prompts
