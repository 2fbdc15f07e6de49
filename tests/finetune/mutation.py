"""Runs a test on a copy of the package in which the line that guards it stands otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lit_llm

Mutation = tuple[str, str, str]
"""(file in the package, the line that guards, what stands there instead)."""


def check_fails(name: str, of: Path, mutation: Mutation, tmp_path: Path) -> None:
    """Assert that the test ``name`` of the file ``of`` fails under the mutation."""
    package = tmp_path / "lit_llm"
    shutil.copytree(Path(lit_llm.__file__).parent, package, ignore=shutil.ignore_patterns("*.pyc"))
    file, guard, instead = mutation
    text = (package / file).read_text(encoding="utf-8")
    assert guard in text, f"{file} has no {guard!r}"
    (package / file).write_text(text.replace(guard, instead), encoding="utf-8")
    done = subprocess.run(
        # The copy stands before the repository, which pyproject.toml names as pytest's path.
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         "-o", f"pythonpath={tmp_path} .", f"{of}::{name}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:]
    assert f"::{name}" in done.stdout and "ERROR" not in done.stdout
