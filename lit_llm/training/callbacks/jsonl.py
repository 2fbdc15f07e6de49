"""Files of JSON lines that grow with a run and are continued by a resumed one."""

from __future__ import annotations

import json
from pathlib import Path


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which a resumed run writes again, and one that a kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            whole = False
        kept += [line] if whole else []
    part = file.with_name(file.name + ".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(file)
