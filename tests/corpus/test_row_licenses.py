"""Licences of rows wherever corpora keep them, and of texts that name their own: a source replaces
neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import rows
from test_row_urls import texts, write

from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.sources import Source
from lit_llm.corpus.steps import Clean

GPL = "GPL-3.0-only"
PLACES: dict[str, dict[str, Any]] = {
    "own": {"license": GPL},
    "capital": {"License": GPL},
    "British": {"licence": GPL},
    "list": {"licenses": [GPL]},
    "Common Pile": {"metadata": {"license": GPL, "url": "https://example.org/a"}},
    "as JSON": {"meta": json.dumps({"license": GPL})},
    "The Stack": {"max_stars_repo_licenses": [GPL]},
    "The Stack 2": {"detected_licenses": [GPL], "license_type": "no_license"},
    "null": {"license": None, "metadata": {"license": GPL}},
    "empty": {"license": "", "metadata": {"license": {"spdx_id": GPL}}},
}


def cleaned(source: Source, folder: Path) -> list[str | None]:
    """Licences of all documents of a source, by the default steps."""
    found: list[str | None] = []
    for part in list_parts(source):
        target = folder / "cleaned.parquet"
        Clean.of(part, CorpusConfig().blocks(), target)()
        found += pq.read_table(target)["license"].to_pylist()
    return found


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("place", PLACES)
def test_a_row_names_its_licence(tmp_path: Path, place: str, kind: str) -> None:
    given: list[dict[str, Any]] = [{"text": text} for text in texts(3)]
    given[1].update(PLACES[place])
    if kind == "parquet":
        names = dict.fromkeys(name for row in given for name in row)
        columns = {name: [row.get(name) for row in given] for name in names}
        file = tmp_path / "rows.parquet"
        pq.write_table(pa.table(columns), file)
    else:
        file = write(tmp_path, kind, given)
    source = Source("s", str(file), license="MIT")
    assert cleaned(source, tmp_path) == ["MIT", GPL, "MIT"]


DECLARED = {
    "# SPDX-License-Identifier: GPL-3.0-only": GPL,
    "SPDX-License-Identifier: Secret-Sauce": None,
    "This work is licensed under CC BY-NC 4.0.": "CC-BY-NC-4.0",
    "Licensed under the GNU GPL v3.": GPL,
    "Linux is licensed under the GPL.": "MIT",
    "No word of it.": "MIT",
}


@pytest.mark.parametrize("head", DECLARED)
def test_a_text_counts_before_its_source(tmp_path: Path, head: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{head}\n{texts(1)[0]}")
    assert cleaned(Source("s", str(file), license="MIT"), tmp_path) == [DECLARED[head]]


def test_a_source_counts_where_licences_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(texts(1)[0])
    assert [row["license"] for row in rows(Source("s", str(tmp_path), license="MIT"))] == ["MIT"]


def test_a_header_of_a_source_file_counts_before_its_tree(tmp_path: Path) -> None:
    mit = "Permission is hereby granted, free of charge, to any person obtaining a copy"
    (tmp_path / "LICENSE").write_text(mit)
    (tmp_path / "own.py").write_text("# SPDX-License-Identifier: GPL-3.0-only\nx = 1\n")
    (tmp_path / "other.py").write_text("y = 1\n")
    found = {row["id"]: row["license"] for row in rows(Source("s", str(tmp_path), kind="code"))}
    assert (found["own.py"], found["other.py"]) == (GPL, "MIT")
