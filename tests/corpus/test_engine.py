"""Tasks in threads and in Daft's processes; failures come back as what they were."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_llm.corpus.engine import Engine
from lit_llm.errors import UserError


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@dataclass(frozen=True)
class Write:
    """Write a number to a file, or fail."""

    target: Path
    number: int
    failure: str = ""

    def __call__(self) -> None:
        if self.failure == "mistake":
            raise UserError("a.txt: mend it")
        if self.failure == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.failure == "bug":
            raise KeyError("lost")
        self.target.write_text(str(self.number))


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (3, True), (2, False)])
def test_every_task_is_done_once_and_told(tmp_path: Path, workers: int, threads: bool) -> None:
    tasks = [Write(tmp_path / str(number), number) for number in range(5)]
    assert sorted(Engine(workers=workers).run(tasks, threads)) == list(range(5))
    assert [(tmp_path / str(number)).read_text() for number in range(5)] == list("01234")
    assert list(Engine(workers=workers).run([], threads)) == []


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (3, True), (2, False)])
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ("mistake", UserError, "a.txt: mend it"),
        ("disk", OSError, "No space"),
        ("bug", Exception, "lost"),
    ],
)
def test_failures_come_back(
    tmp_path: Path, workers: int, threads: bool, failure: str, kind: type, message: str
) -> None:
    tasks = [Write(tmp_path / str(number), number, failure) for number in range(3)]
    with pytest.raises(kind, match=message):
        list(Engine(workers=workers).run(tasks, threads))


def test_a_runner_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="runner: ray is not installed here"):
        list(Engine("ray").run([print]))
