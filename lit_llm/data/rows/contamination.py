"""Examples that contain words of evaluation items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_llm.errors import UserError

_ENDINGS = (".jsonl", ".ndjson", ".json")
NGRAM = 13
"""Words in a row that an example may not share with an item, as in GPT-3 (arXiv:2005.14165)."""
_task_texts: list[Callable[[str], list[str]]] = []


def register_task_texts(read: Callable[[str], list[str]]) -> None:
    """Let ``data.decontaminate`` name evaluation tasks; `lit_llm.evaluate.items` does so.

    Evaluation lies above data, so this module cannot import it.

    Args:
        read: gives all texts of the items of a task, and raises UserError for an unknown one.
    """
    _task_texts[:] = [read]


def check_items(names: Sequence[str]) -> None:
    """Raise UserError for an entry of ``data.decontaminate`` that can be neither file nor task."""
    for name in names:
        if Path(name).is_file():
            if not name.lower().endswith(_ENDINGS):
                raise UserError(f"data.decontaminate: {name} is not a .jsonl file of items")
        elif name.lower().endswith(_ENDINGS) or "/" in name:
            raise UserError(f"data.decontaminate: {name} is not a file")
        elif not _task_texts:
            raise UserError(
                f"data.decontaminate: {name} is not a file; in Python, tasks are known after "
                "import lit_llm.evaluate.items"
            )


def evaluation_items(names: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each file or task: questions, choices and answers, each by itself.

    Raises:
        UserError: a file is not readable or has no text; a task is unknown or cannot be loaded.
    """
    from lit_llm.corpus.dedup.decontaminate import evaluation_texts

    found: dict[str, list[str]] = {}
    for name in names:
        texts = evaluation_texts([name]) if Path(name).is_file() else {name: _task_texts[0](name)}
        for key, own in texts.items():
            found.setdefault(key, []).extend(own)
    return found


def contaminated(given: Sequence[str], items: Mapping[str, Sequence[str]]) -> list[str | None]:
    """For each text, the set of items that it shares `NGRAM` words in a row with, or None.

    An item shorter than that counts as a whole, from eight words on (`Decontaminate`).

    Raises:
        UserError: no item has eight words.
    """
    from lit_llm.corpus.dedup.decontaminate import Decontaminate

    evaluations = {name: list(texts) for name, texts in items.items()}
    return Decontaminate.against(evaluations, NGRAM).contaminated(list(given))
