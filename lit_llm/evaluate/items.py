"""Texts of evaluation items, for the data modules that leave them out of training.

Importing this module lets ``data.decontaminate`` name tasks.
"""

from __future__ import annotations

from lit_llm.corpus.dedup.decontaminate import strings_in
from lit_llm.data.rows.contamination import register_task_texts
from lit_llm.errors import UserError


def task_texts(name: str) -> list[str]:
    """All strings in the documents that a task (or a group or tag) asks about.

    Raises:
        UserError: lm_eval is not installed, or the task is unknown or cannot be loaded.
    """
    from lit_llm.evaluate.run import load_tasks, one_line

    found: list[str] = []
    for task in load_tasks([name])[name]["tasks"].values():
        try:
            documents = list(task.eval_docs)
        except Exception as error:  # a task runs code and downloads data
            raise UserError(f"task {name} cannot be loaded: {one_line(error)}") from error
        found += [text for document in documents for text in strings_in(document)]
    if not found:
        raise UserError(f"data.decontaminate: the items of task {name} hold no text")
    return found


register_task_texts(task_texts)
