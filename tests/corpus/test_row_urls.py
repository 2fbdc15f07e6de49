"""Addresses of rows wherever well-known corpora keep them: opt-out and removal by domain find
them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from truth.planted import sentence

from lit_llm.cli import main
from lit_llm.corpus.output.folder import Corpus

URL = "HTTPS://User@WWW.Example.org:443/a%7Eb?q=1"
PLACES: dict[str, dict[str, Any]] = {
    "C4": {"url": URL},
    "datatrove, Dolma": {"metadata": {"url": URL, "score": 0.5}},
    "RedPajama": {"meta": {"url": URL, "language": "en"}},
    "as JSON": {"meta": json.dumps({"url": URL, "language": "en"})},
    "DCLM": {"metadata": {"WARC-Target-URI": URL}},
    "OSCAR": {"metadata": {"warc_headers": {"warc-target-uri": URL}}},
    "HPLT": {"u": URL},
    "empty": {"url": "", "metadata": {"url": URL}},
    "null": {"url": None, "metadata": {"url": URL}},
    "source": {"source_url": URL},
    "Dolma's Common Crawl": {"id": URL.lower()},
}
OTHER = {"metadata": {"url": "https://other.net/a"}}


def texts(count: int) -> list[str]:
    draw = random.Random(3)
    return [" ".join(sentence(draw, 50)).capitalize() for _ in range(count)]


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of that kind."""
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(place: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rows at the address, six at another; every row with all columns, as a table has them."""
    rows: list[dict[str, Any]] = [{"text": text, **OTHER} for text in texts(8)]
    for row in rows[2:4]:
        del row["metadata"]
        row.update(place)
    return rows


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_opt_out_finds_the_address(tmp_path: Path, place: dict[str, Any], kind: str) -> None:
    rows = rows_of(place)
    if "meta" in place or "metadata" not in place:  # a table's column has one type
        rows = [{key: row.get(key) for key in {*place, *row}} for row in rows]
    file = write(tmp_path, kind, rows)
    out = tmp_path / "corpus"
    args = ["corpus", "build", "--input", str(file), "--output", str(out), "--vocab_size", "270"]
    assert main([*args, "--opt_out.entries", "[example.org]", "--dedup", "null"]) == 0
    dropped = Corpus.load(out).datacard["dropped"]
    assert dropped == {"opt_out: domain example.org": 2}


def test_removal_by_domain_finds_the_address(tmp_path: Path) -> None:
    file = write(tmp_path, "jsonl", rows_of(PLACES["datatrove, Dolma"]))
    out = str(tmp_path / "corpus")
    args = ["corpus", "build", "--input", str(file), "--output", out, "--vocab_size", "270"]
    assert main(args) == 0
    assert main(["corpus", "remove", out, "--domain", "example.org"]) == 0
    hosts = Corpus.load(out).datacard["hosts"]
    assert Corpus.load(out).datacard["documents"] == 6 and set(hosts) == {"other.net"}


def test_documents_that_no_list_can_hold_for_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text} for text in texts(6)]
    rows[0]["url"] = URL
    file = write(tmp_path, "jsonl", rows)
    args = ["corpus", "build", "--input", str(file), "--output", str(tmp_path / "corpus")]
    assert main([*args, "--vocab_size", "270", "--opt_out.entries", "[example.org]"]) == 0
    told = "opt_out: 5 of 6 documents have no URL, so its lists cannot be applied to them"
    assert told in capsys.readouterr().err
