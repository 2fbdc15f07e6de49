"""What is compared: evaluations by name or folder, alone or as the runs of one recipe."""

from __future__ import annotations

import difflib
import glob
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError
from lit_llm.evaluate.results.folder import RESULTS, Evaluation, read_evaluation
from lit_llm.evaluate.results.names import default_name


@dataclass(frozen=True)
class Contender:
    """A model, or a recipe of which several runs were evaluated.

    Attributes:
        name: as in tables.
        runs: its evaluations; one at least.
    """

    name: str
    runs: list[Evaluation]

    @cached_property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The tasks that all runs have, with what the first one says of them."""
        first, *others = self.runs
        return {
            name: task
            for name, task in first.tasks.items()
            if all(name in run.tasks for run in others)
        }


def named(words: list[str], parent: Path) -> list[Contender]:
    """Evaluations by name, each a contender.

    Args:
        words: folders of results, names in ``parent``, or run folders whose results are there.
        parent: folder of all evaluations.

    Raises:
        UserError: no such evaluation, or the same one twice.
    """
    found = [read_evaluation(_folder(word, parent)) for word in words]
    if len({evaluation.folder.resolve() for evaluation in found}) < len(found):
        raise UserError(f"{' '.join(words)}: the same evaluation twice; name different ones")
    names = [evaluation.name for evaluation in found]
    if len(set(names)) < len(names):  # folders of one name in different places
        names = words
    return [Contender(name, [one]) for name, one in zip(names, found, strict=True)]


def recipes(patterns: list[str], parent: Path) -> list[Contender]:
    """Recipes, each with all runs that match its pattern.

    Args:
        patterns: such as "runs/a-*" or "a-*".
        parent: folder of all evaluations.

    Raises:
        UserError: a pattern without an evaluation.
    """
    found = []
    for pattern in patterns:
        words = sorted(glob.glob(pattern) or glob.glob(str(parent / pattern)))
        if not words:
            raise UserError(f"--seeds {pattern}: matches nothing here or in {parent}")
        found.append(Contender(pattern, [one.runs[0] for one in named(words, parent)]))
    return found


def _folder(word: str, parent: Path) -> Path:
    path = Path(word).expanduser()
    if path.name == RESULTS:
        path = path.parent
    for folder in (path, parent / word, parent / default_name(word)):
        if (folder / RESULTS).is_file():
            return folder
    known = sorted(file.parent.name for file in parent.glob(f"*/{RESULTS}"))
    near = difflib.get_close_matches(Path(word).name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif known:
        hint = f"{parent} holds {', '.join(known[:8])}"
    else:
        hint = "lit_llm evaluate CHECKPOINT --tasks ... makes one"
    raise UserError(f"{word}: no evaluation of this name; {hint}")
