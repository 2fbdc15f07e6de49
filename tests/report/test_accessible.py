"""Every page that lit_llm writes, held to axe-core's rules and to a phone's width."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import examine
from pages_of_all_kinds import PAGES, FakeRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, write_fake_run: FakeRun
) -> Callable[[str], Path]:
    """A page by its name, written once."""
    return functools.cache(
        lambda name: PAGES[name](tmp_path_factory.mktemp("pages") / "made", write_fake_run)
    )


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, False), (1280, True)])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_breaks_no_rule_and_does_not_scroll_sideways(
    page: Callable[[str], Path], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    found = examine(tmp_path, page(name), width, dark)
    assert found["violations"] == []
    assert (found["overflow"], found["outside"]) == (0, [])
    assert found["width"] == width and found["dark"] is dark and found["checked"] > 20
    assert found["title"].endswith(("training report", "data card"))  # no script of a name's ran


def test_every_page_of_the_package_is_among_them() -> None:
    """A new template needs a page here."""
    import lit_llm

    templates = {file.name for file in Path(lit_llm.__file__).parent.rglob("*.html")}
    assert templates == {"page.html", "card.html"}
