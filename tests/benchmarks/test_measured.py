"""The tables of the documentation are those of the benchmarks' results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/measured.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_changed_result_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measured

    folder = tmp_path / "some-cpu-amx-2-cores"
    folder.mkdir()
    result = json.loads((next(measured.RESULTS.glob("*/encode.json"))).read_text())
    (folder / "encode.json").write_text(json.dumps(result | {"ratio": 12.34}))
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert "| 12.3 times as fast; 772 of 772 |" in measured.tables()
    assert "| text to token ids, times as fast as `tokenizers` | 12.3 |" in measured.headlines()
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- measured -->\nold\n<!-- end of measured -->\nb\n")
    assert measured.written(page, "new\n").startswith("a\n<!-- measured -->\n\nnew\n\n<!-- end")
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match=r"README\.md: no marks"):
        measured.written(page, "new\n")
