"""The commands of docs/compare.md run, on small evaluations of the names that they use."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lit_llm.cli import main
from tests.evaluate.compare.evaluations import choices, texts, write_evaluation

GUIDE = Path(__file__).parents[3] / "docs" / "compare.md"
LINES = re.findall(r"^(?:\$ )?lit_llm (compare .*)$", GUIDE.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_guide(
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lengths = rng.uniform(500, 900, 20)
    for name in ("base", "base-2", "mine", "mine-2", "mine-3"):
        right = list((rng.random(200) < (0.5 if name.startswith("base") else 0.9)).astype(float))
        bits = list(lengths * rng.normal(2, 0.2, 20))
        write_evaluation(
            tmp_path / "evaluations",
            name,
            stdlib_choice=choices(right),
            stdlib_rolling=texts(bits, list(lengths)),
        )
    try:
        status = main(shlex.split(line))
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert status == (1 if "--gate" in line else 0), err
    assert "stdlib_choice" in out and "better" in out and not err
    if "--html" in line:
        assert Path("out/compare.html").is_file() and Path("out/compare.json").is_file()


def test_the_guide_has_commands() -> None:
    assert len(LINES) >= 5
