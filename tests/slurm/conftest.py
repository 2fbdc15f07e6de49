"""A SLURM of two nodes, and a folder to run jobs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from place import Place


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for each of pytest-xdist's workers: they share nothing."""
    if why := missing():
        pytest.skip(why)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def place(tmp_path: Path, cluster: Cluster, corpus: Path) -> Iterator[Place]:
    """Where the jobs of a test run; none is left after it."""
    yield Place(tmp_path, cluster, corpus)
    cluster.clear()
