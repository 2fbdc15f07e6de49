"""Changes to several files of a folder that happen together or not at all, whenever the process is
killed.

New files are written below ``<folder>/.next``, under the names that they will have. The file COMMIT
there says that all of them are on disk; from then on moving them into place can be repeated, and
`finish` does so at every opening of the folder until ``.next`` is gone. Before that it throws away
what was begun.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lit_llm.io.atomic import published, sync, sync_names

_NEXT, _COMMIT = ".next", "COMMIT"


@contextmanager
def transaction(folder: Path, gone: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write new files into, which replace those of the same paths in ``folder`` when
    the block ends.

    Args:
        folder: locked by the caller.
        gone: files and folders in it that are removed before, as they stand when the block ends.
    """
    staged = folder / _NEXT
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        sync(staged)
        with published(staged / _COMMIT) as partial:
            partial.write_text(json.dumps(list(gone)))
    except BaseException:
        (staged / _COMMIT).unlink(
            missing_ok=True
        )  # before the rest: half of it must not pass for all
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finish(folder)


def finish(folder: Path) -> None:
    """Complete or undo what a killed process left; the caller holds the lock."""
    staged = folder / _NEXT
    if not staged.is_dir():
        return
    commit = staged / _COMMIT
    if commit.is_file():
        for name in json.loads(commit.read_text()):
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(
                missing_ok=True
            )
        # Nothing is removed twice: the moves that follow may be repeated.
        with published(commit) as partial:
            partial.write_text("[]")
        for parent, _, names in os.walk(staged):
            target = folder / Path(parent).relative_to(staged)
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                if Path(parent, name) != commit:
                    os.replace(os.path.join(parent, name), target / name)
            sync_names(target)
    shutil.rmtree(staged)


def pending(folder: Path) -> bool:
    """Whether there is something to finish."""
    return (folder / _NEXT).is_dir()
