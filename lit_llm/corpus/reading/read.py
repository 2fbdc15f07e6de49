"""Parts to documents: the readers by kind, and what becomes of files that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lit_llm.corpus.reading.documents import Document, to_tables
from lit_llm.corpus.reading.formats.csv_file import NOT_CSV, read_csv
from lit_llm.corpus.reading.formats.json_file import read_json
from lit_llm.corpus.reading.formats.jsonl import read_lines
from lit_llm.corpus.reading.formats.parquet import read_parquet
from lit_llm.corpus.reading.formats.warc import read_warc
from lit_llm.corpus.reading.formats.whole import read_code, read_html, read_text
from lit_llm.corpus.reading.parts import Part
from lit_llm.corpus.reading.sources import SourceFile
from lit_llm.corpus.reading.text_field import with_its_field
from lit_llm.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Reasons of what is damaged or not what its name says. The other ones tell of text that is no use,
# or is not text.
_BROKEN = (
    "unreadable",
    "damaged record",
    "cut record",
    "not valid JSON",
    "not a JSON object",
    "not UTF-8",
    NOT_CSV,
)


def is_broken(dropped: str) -> bool:
    """Whether a value of "dropped" says that a file or a piece of it is damaged; empty and binary
    ones are not."""
    return dropped.startswith(tuple(f"read: {reason}" for reason in _BROKEN))


def read_part(part: Part) -> Iterator[pa.Table]:
    """Tables of a part's documents, of about 8 MB of text, columns as ``documents.schema()``, in a
    fixed order.

    Every file, line, row and record has its row. What is no text has an empty one and its reason in
    "dropped" ("read: binary"); of a file that cannot be read, or not to its end, one more row says
    so ("read: unreadable: ..."). How much of that is too much is the caller's to say:
    ``block.funnel`` counts the reasons. Ids are unique within a source but for those that rows
    bring themselves, which are taken as they are.

    Raises:
        UserError: no field ``text_field``; a package is missing that reads such files.
    """
    yield from to_tables((read for file in part.files for read in _read(part, file)), part.source)


def _read(part: Part, file: SourceFile) -> Iterator[Document | pa.Table]:
    """A file's documents, one at a time or as columns where its format has them."""
    kind = part.source.kind_of(file.path)
    try:
        part = with_its_field(part, file, kind)
        match kind:
            case "jsonl":
                yield from read_lines(part, file)
            case "json":
                yield from read_json(part, file)
            case "csv":
                yield from read_csv(part, file)
            case "parquet":
                yield from read_parquet(part, file)
            case "warc":
                yield from read_warc(part, file)
            case "html":
                yield read_html(file)
            case "code":
                yield read_code(file, part.source)
            case _:
                yield read_text(file, part.source)
    except OSError as error:
        piece = "" if part.stop is None else f"#{part.start}-{part.stop}"
        why = " ".join(str(error.strerror or error).split())[:120]
        yield Document(
            file.id + piece, file.source, file.path, "", f"unreadable: {why}", part.start
        )
    except ImportError as error:
        raise UserError(
            f"{file.path}: {kind} needs {error.name}; pip install 'lit_llm[corpus]'"
        ) from error
