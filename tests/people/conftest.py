"""Stores on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_llm.people.store.database import Store
from tests.people.databases import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    url = request.getfixturevalue("postgres_url")
    before = Store(url)
    before.downgrade("base")
    before.close()
    return url


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    found = Store(place)
    yield found
    found.close()
