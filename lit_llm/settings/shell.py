"""Commands that are printed for people to copy: each works in a shell as it stands there."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """``words`` for a shell; a ``Path`` that begins with a hyphen would be read as an option."""
    return shlex.join([path_word(w) if isinstance(w, Path) else w for w in words])


def path_word(path: Path) -> str:
    """``path`` as a word that no command takes for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
