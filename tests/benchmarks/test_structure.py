"""The figures of benchmarks/structure.py, on a package made for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "structure.py"


def test_the_figures_of_a_small_package(tmp_path: Path) -> None:
    package = tmp_path / "small"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from small.room import b\n# why\nx = '" + 100 * "x" + "'\n")
    (package / "room" / "__init__.py").write_text("")
    (package / "room" / "b.py").write_text("def f():\n    import small.a\n" + 60 * "    x = 1\n")
    (package / "room" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c\n"
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, f"mine={package}"], capture_output=True, text=True, check=True
    )
    row = done.stdout.splitlines()[-1]
    assert row == "| mine | 5 | 2 (room) | 62 (room/b.py) | 0 | 1 | 1.5% | 1 | 2 |"
