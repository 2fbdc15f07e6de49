"""Folders that one of several processes builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_llm.io import atomic
from lit_llm.io.locks import acquire, release


def test_the_second_process_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "folder"
    with atomic.workspace_beside(output) as workspace:
        lock_file = workspace.with_suffix(".lock")
    lock = acquire(lock_file, wait=False)
    assert lock is not None
    said: list[str] = []

    def say(text: str, **options: object) -> None:
        said.append(text)
        release(lock_file, lock)  # the first process ends

    monkeypatch.setattr(atomic, "print", say, raising=False)
    with atomic.workspace_beside(output) as workspace:
        assert workspace.is_dir()
    assert said == [f"waiting for another process that builds {output}"]
    assert list(tmp_path.iterdir()) == []
