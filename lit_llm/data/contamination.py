"""Examples that contain words of evaluation items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_llm.errors import UserError

_ENDINGS = (".jsonl", ".ndjson", ".json", ".gz")
NGRAM = 13
"""Words in a row that an example may not share with an item, as in GPT-3 (arXiv:2005.14165)."""


def check_files(files: Sequence[str]) -> None:
    """Raise UserError for an entry of ``data.decontaminate`` that is no file of items."""
    for file in files:
        if not Path(file).is_file():
            raise UserError(
                f"data.decontaminate: {file} is not a file; give JSONL files with the items of "
                "evaluation tasks (lit_llm evaluate writes the items it asked with --samples)"
            )
        if not file.lower().endswith(_ENDINGS):
            raise UserError(f"data.decontaminate: {file} is not a .jsonl file of items")


def contaminated(given: Sequence[str], files: Sequence[str]) -> list[str | None]:
    """For each text, the file whose items it shares `NGRAM` words in a row with, or None.

    An item shorter than that counts as a whole, from eight words on (`Decontaminate`). All texts in
    an item are compared: questions, choices and answers.

    Raises:
        UserError: a file is not readable or has no text.
    """
    from lit_llm.corpus.dedup.decontaminate import Decontaminate, evaluation_texts

    return Decontaminate.against(evaluation_texts(files), NGRAM).contaminated(list(given))
