"""Log of removals, removed.jsonl: a line per document with hashes of id and text, date and reason.

An id is often a place in a file, which changes when a line is added before it. The text's hash
still finds the document.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

LOG = "removed.jsonl"


def sha256(said: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(said.encode()).hexdigest()


def removals(folder: Path) -> dict[str, dict[str, Any]]:
    """Return SHA-256 (hex) of an id -> its line in the corpus folder's log."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row["id_sha256"]: row for row in map(json.loads, lines)}


def removed_hashes(folder: Path) -> frozenset[str]:
    """Return the SHA-256 (hex) of the ids of all removed documents, and of their texts.

    A document that was already dropped had no text; its shown example counts instead.
    """
    lines = removals(folder)
    texts = (line.get("text_sha256") for line in lines.values())
    return frozenset(lines) | {text for text in texts if text is not None}
