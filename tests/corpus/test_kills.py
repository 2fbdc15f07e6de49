"""Builds killed at random moments, with all their processes, and run again: nothing differs,
nothing is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import BuildServer
from test_pipeline import config, evaluation_set, messy  # noqa: F401 (the last two are fixtures)

from lit_llm.corpus.build import WORK
from lit_llm.corpus.config import CorpusConfig, Evaluations
from lit_llm.corpus.output.folder import Corpus


@pytest.fixture(scope="module")
def wanted(messy: Path, evaluation_set: str) -> CorpusConfig:
    return config(
        messy, part_bytes=1500, evaluations=Evaluations((evaluation_set,)), validation_fraction=0.2
    )


@pytest.fixture(scope="module")
def server(wanted: CorpusConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildServer]:
    with BuildServer(wanted, tmp_path_factory.mktemp("server") / "corpus") as server:
        yield server


def content(corpus: Path) -> dict[str, str]:
    """Every file of a corpus by the digest of its bytes; of the card what does not depend on the
    clock."""
    found = {}
    for file in corpus.rglob("*"):
        name = file.relative_to(corpus)
        if file.is_file() and name.parts[0] != WORK and name.suffix != ".html":
            data = file.read_bytes()
            if name.name == "datacard.json":
                data = json.dumps({**json.loads(data), "created": None, "build": None}).encode()
            found[str(name)] = hashlib.sha256(data).hexdigest()
    return found


def finished(corpus: Path) -> dict[Path, int]:
    """Stages' outputs that are complete, and which files they are."""
    return {
        path: path.stat().st_ino
        for path in (corpus / WORK).glob("*/*")
        if path.suffix in (".parquet", ".arrow")
    }


def half_done(corpus: Path) -> bool:
    """Whether something lies there that was being written or put into place."""
    return bool(
        [
            *corpus.glob(".next"),
            *(corpus / WORK).rglob("*.partial"),
            *(corpus / WORK).glob("dedup-*"),
        ]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is a folder: a kill does not ask what is on the disk, but a hundred
    fsyncs a build wait."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=memory if os.access(memory, os.W_OK) else tmp_path
    ) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "kills"), [(1, 17), (2, 3)]
)  # Daft's processes take seconds to start
def test_killed_at_random_moments_and_run_again(
    server: BuildServer, wanted: CorpusConfig, folder: Path, workers: int, kills: int
) -> None:
    """Every other build takes the place of a corpus with other settings, which stays whole until it
    does."""
    parallel = dataclasses.replace(wanted, workers=workers)
    seconds = server.build(parallel, folder / "whole")
    expected = content(folder / "whole")
    server.build(dataclasses.replace(wanted, evaluations=None, keep_work=False), folder / "older")
    older = content(folder / "older")
    rng, hit, torn = random.Random(workers), 0, 0
    for trial in range(4 * kills):
        output = folder / str(trial)
        if trial % 2:
            shutil.copytree(folder / "older", output)
        if not server.killed(parallel, output, rng.uniform(0, seconds)):
            continue
        hit += 1
        torn += half_done(output)
        done = finished(output)
        if trial % 2:
            assert content(Corpus.load(output).path) in (older, expected)
        server.build(wanted, output)
        assert content(output) == expected
        assert done.items() <= finished(output).items() and not half_done(output)
        shutil.rmtree(output)
        if hit == kills:
            break
    assert hit == kills and torn >= kills // 4
