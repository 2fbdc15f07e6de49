"""Transactions on a folder: several files change together or not at all, even if the process dies.

New files are written below ``<folder>/.next``, under their final names. The file COMMIT there says
that all of them are on disk. From then on they are moved into place. The moves can be repeated:
`finish` repeats them at every opening of the folder until ``.next`` is gone. Without COMMIT it
deletes the unfinished files.
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
    """Yield a folder for new files, which replace those of ``folder`` when the block ends.

    A new file replaces the file with the same relative path.

    Args:
        folder: the folder to change; locked by the caller.
        gone: files and folders in it to remove first, when the block ends.
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
        # COMMIT is removed before the rest, so that a part of the files never looks complete.
        (staged / _COMMIT).unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finish(folder)


def finish(folder: Path) -> None:
    """Complete or undo the transaction that a killed process left; the caller holds the lock."""
    staged = folder / _NEXT
    if not staged.is_dir():
        return
    commit = staged / _COMMIT
    if commit.is_file():
        for name in json.loads(commit.read_text()):
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(
                missing_ok=True
            )
        # From here on nothing is removed, so that the moves can be repeated.
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
    """Whether there is a transaction to finish."""
    return (folder / _NEXT).is_dir()
