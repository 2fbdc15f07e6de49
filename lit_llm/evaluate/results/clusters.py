"""Which items of a task depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lit_llm.errors import UserError
from lit_llm.evaluate.tasks import LOCAL_TASKS

CLUSTER = "cluster"
"""Field of a document that names its cluster."""


def cluster_of(task: str, field: str | None = None) -> Callable[[Mapping[str, Any], str], str]:
    """A function (document, id of the item) -> name of the item's cluster.

    The cluster is the document's field ``field``, else its field `CLUSTER`, else, for the local
    tasks, the module that the item is from. Else each item is a cluster of its own.

    Args:
        task: name of the task.
        field: field to use, such as "passage". A document without it is refused.

    Raises:
        UserError: from the function: a document has no field ``field``.
    """
    modules = _modules() if task in LOCAL_TASKS else set()

    def found(document: Mapping[str, Any], item: str) -> str:
        if field is not None:
            if field not in document:
                raise UserError(
                    f"--cluster_by {field}: documents of {task} have no such field; they have "
                    f"{', '.join(sorted(document))}"
                )
            return str(document[field])
        if CLUSTER in document:
            return str(document[CLUSTER])
        name = item
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or item

    return found


def _modules() -> set[str]:
    from lit_llm.data.rows.docstrings import stdlib_modules

    return {name for name, _ in stdlib_modules()}
