"""What people install is what the repository has."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_presets_page_and_types(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", tmp_path, ROOT], check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    presets = {f"lit_llm/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}
    kinds = (".py", ".html", ".css", ".js", ".typed")
    files = [file for file in (ROOT / "lit_llm").rglob("*") if file.suffix in kinds]
    sources = {str(file.relative_to(ROOT)) for file in files}
    assert presets and presets | sources <= names
