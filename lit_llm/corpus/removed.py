"""The log of removals: removed.jsonl, a line a document with "id_sha256", "date" and "reason"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG = "removed.jsonl"


def removals(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 (hex) of an id -> its line in the corpus folder's log."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {row["id_sha256"]: row for row in map(json.loads, lines)}


def removed_ids(folder: Path) -> frozenset[str]:
    """SHA-256 (hex) of the ids of all removed documents."""
    return frozenset(removals(folder))
