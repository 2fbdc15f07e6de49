"""What tests of reading share: all rows of a source."""

from __future__ import annotations

from lit_llm.corpus.reading.documents import Document, schema
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.reading.sources import Sources


def rows(sources: Sources, target_bytes: int = 2**26) -> list[dict]:
    """All rows of all parts; every table has the columns that were promised."""
    found = []
    for part in list_parts(sources, target_bytes):
        for table in read_part(part):
            assert table.schema.equals(schema())
            found += table.to_pylist()
    assert len({(row["source"], row["id"]) for row in found}) == len(found)
    return found


def documents_of(sources: Sources, text_field: str = "text") -> list[Document]:
    """The same as documents, in the same order."""
    found = []
    for part in list_parts(sources, text_field=text_field):
        for row in (row for table in read_part(part) for row in table.to_pylist()):
            del row["domain"]
            dropped = row.pop("dropped")
            found.append(Document(**row, dropped=dropped and dropped.removeprefix("read: ")))
    return found
