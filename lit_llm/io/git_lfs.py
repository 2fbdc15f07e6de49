"""Pointers of Git LFS: small text files in place of large ones that were not fetched.

A repository that is cloned without Git LFS, or downloaded as an archive, has them under the names
of its weights, tokenizers and data.
"""

from __future__ import annotations

import os

from lit_llm.errors import UserError

LARGEST = 1024  # bytes; the format allows no larger pointer
SAID = "a pointer of Git LFS, not the file itself: fetch it with git lfs pull"
_BEGINS = b"version https://git-lfs.github.com/spec/"


def is_pointer(data: bytes) -> bool:
    """Whether the content of a file is a pointer."""
    return len(data) < LARGEST and data.startswith(_BEGINS)


def refuse_pointer(path: str | os.PathLike[str]) -> None:
    """Raise UserError if the file is a pointer. A file that cannot be opened is no pointer."""
    try:
        with open(path, "rb") as file:
            head = file.read(LARGEST)
    except OSError:
        return
    if is_pointer(head):
        raise UserError(f"{path}: {SAID}")
