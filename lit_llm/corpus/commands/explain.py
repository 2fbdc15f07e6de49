"""Explain a document: where it came from, what each step did with it, and where it is now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lit_llm.corpus.output.encode import DOCUMENTS
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import locate
from lit_llm.corpus.storage.removal_log import removals
from lit_llm.corpus.storage.store import read_table
from lit_llm.errors import UserError


def explain(folder: str | Path, name: str) -> list[dict[str, Any]]:
    """What is known about the documents with an id.

    That is one document, unless sources gave several documents the same id.

    Returns:
        For a kept document: its row without the text, with "steps" (the result of each), "file",
        "shard", "position" (of its separator in the shard, in tokens) and "copies" (ids of its
        dropped copies). For a dropped document: its row and "steps". For a removed document:
        "removed", the line of the log.

    Raises:
        UserError: there is no such document.
    """
    corpus = Corpus.load(folder)
    found = [*_kept(corpus, name), *_dropped(corpus, name)]
    line = removals(corpus.path).get(hashlib.sha256(name.encode()).hexdigest())
    if line is not None:
        found.append({"id": name, "removed": line})
    if not found:
        raise UserError(
            f"{corpus.path}: no document has the id {name!r}; ids are in documents/ and dropped/"
        )
    return found


def _kept(corpus: Corpus, name: str) -> Iterator[dict[str, Any]]:
    """Rows of kept documents with the id, and their positions in the shards.

    The shards of a split and source contain its documents in the order of the files. So a
    document's position is the sum of the tokens of the documents before it.
    """
    positions: dict[tuple[str, str], int] = {}
    for file in sorted((corpus.path / "documents").iterdir()):
        places = read_table(file, ["id", "split", "source", "tokens"])
        if pc.any(pc.equal(places["id"], name)).as_py():
            columns = [column for column in DOCUMENTS.names if column != "text"]
            rows = iter(read_table(file, columns, pc.field("id") == name).to_pylist())
        for place in places.to_pylist():
            stream = place["split"], place["source"]
            position = positions.get(stream, 0)
            positions[stream] = position + place["tokens"]
            if place["id"] == name:
                row = next(rows)
                shard, at = locate(corpus.path / "shards" / stream[0] / stream[1], position)
                changed = (row["changed_by"] or "").split(", ")
                steps = {
                    step["stage"]: "changed the text" if step["stage"] in changed else "kept"
                    for step in corpus.datacard["funnel"]
                }
                yield {
                    **row, "steps": steps, "file": f"documents/{file.name}",
                    "shard": f"shards/{stream[0]}/{stream[1]}/{shard}", "position": at,
                    "copies": sorted(_copies(corpus, name)),
                }  # fmt: skip


def _dropped(corpus: Corpus, name: str) -> Iterator[dict[str, Any]]:
    """Rows of dropped documents with the id, with the steps up to the one that dropped each."""
    for file in sorted((corpus.path / "dropped").iterdir()):
        for row in read_table(file, rows=pc.field("id") == name).to_pylist():
            steps = {}
            for step in corpus.datacard["funnel"]:
                steps[step["stage"]] = (
                    f"dropped: {row['reason']}" if step["stage"] == row["stage"] else "kept"
                )
                if step["stage"] == row["stage"]:
                    break
            yield {**row, "steps": steps}


def _copies(corpus: Corpus, name: str) -> Iterator[str]:
    """Ids of the documents that were dropped as copies of a kept one."""
    for file in (corpus.path / "dropped").iterdir():
        yield from read_table(file, ["id"], pc.field("duplicate_of") == name)["id"].to_pylist()


def told(row: dict[str, Any]) -> str:
    """Format a row of `explain` as readable lines."""
    if "removed" in row:
        return f"{row['id']}: removed on {row['removed']['date']} ({row['removed']['reason']})"
    kept = "shard" in row
    lines = [f"{row['id']}: {'kept' if kept else 'dropped by ' + row['stage']}"]
    for key, value in row.items():
        if key not in ("id", "steps") and value not in (None, "", [], {}):
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:.4g}" for k, v in value.items() if v) or "none"
            lines.append(f"  {key:16} {', '.join(value) if isinstance(value, list) else value}")
    lines += [f"  {step:16} {said}" for step, said in row["steps"].items()]
    return "\n".join(lines)
