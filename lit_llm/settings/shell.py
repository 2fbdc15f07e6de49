"""Commands printed for the user, quoted so that they can be copied into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """Quote ``words`` for a shell. A ``Path`` that begins with a hyphen gets ``./`` in front."""
    return shlex.join([path_word(w) if isinstance(w, Path) else w for w in words])


def path_word(path: Path) -> str:
    """Return ``path`` as a word that no command parses as an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
