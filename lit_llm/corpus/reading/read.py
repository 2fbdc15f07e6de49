"""Read parts into tables of documents: choose the reader by kind, and handle unreadable files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lit_llm.corpus.reading.documents import Document, to_tables
from lit_llm.corpus.reading.files import is_read_error, open_raw
from lit_llm.corpus.reading.formats.csv_file import NOT_CSV, read_csv
from lit_llm.corpus.reading.formats.json_file import read_json
from lit_llm.corpus.reading.formats.jsonl import read_lines
from lit_llm.corpus.reading.formats.parquet import read_parquet
from lit_llm.corpus.reading.formats.warc import read_warc
from lit_llm.corpus.reading.formats.whole import read_code, read_html, read_text
from lit_llm.corpus.reading.parts import Part
from lit_llm.corpus.reading.rows import holds_array
from lit_llm.corpus.reading.sources import SourceFile
from lit_llm.corpus.reading.text_field import with_its_field
from lit_llm.errors import UserError
from lit_llm.io import git_lfs

if TYPE_CHECKING:
    import pyarrow as pa

# Reasons of damaged files, and of files that do not contain what their name says. The other reasons
# are for text without use, and for data that is not text.
_UNREACHED = "could not be read"  # a file that another try may read
_BROKEN = (
    _UNREACHED,
    "unreadable",
    "damaged record",
    "cut record",
    "not valid JSON",
    "not a JSON object",
    "not UTF-8",
    NOT_CSV,
)

_ARROW = (".arrow", ".feather")


def is_broken(dropped: str) -> bool:
    """Whether a value of "dropped" stands for a damaged file or piece.

    Empty and binary files are not damaged.
    """
    return dropped.startswith(tuple(f"read: {reason}" for reason in _BROKEN))


def may_be_read_later(dropped: str) -> bool:
    """Whether a value of "dropped" stands for a file that another try may read.

    Examples: its store was not reached, it may not be opened, its link led nowhere. Its size and
    version do not change when it can be read.
    """
    return dropped.startswith(f"read: {_UNREACHED}")


def read_part(part: Part) -> Iterator[pa.Table]:
    """Yield tables of a part's documents, of about 8 MB of text, in a fixed order.

    The columns are those of ``documents.schema()``. Every file, line, row and record has its row.
    If it is not text, the row's text is empty and "dropped" has the reason ("read: binary"). A file
    that cannot be read, or not to its end, has one more row that says so ("read: unreadable: ...").
    The caller decides how much of that is too much: ``block.funnel`` counts the reasons. Ids are
    unique within a source, except ids from the rows themselves, which are used as they are.

    Raises:
        UserError: there is no field ``text_field``, a file is an Arrow file, or a package to read
            such files is missing.
    """
    yield from to_tables((read for file in part.files for read in _read(part, file)), part.source)


def _read(part: Part, file: SourceFile) -> Iterator[Document | pa.Table]:
    """Yield a file's documents, one at a time or as tables if the format has columns."""
    kind = part.source.kind_of(file.path)
    try:
        if file.size < git_lfs.LARGEST and _is_pointer(file):
            raise OSError(git_lfs.SAID)
        part = with_its_field(part, file, kind)
        match kind:
            case "jsonl" if part.stop is None and holds_array(file.path):
                yield from read_json(part, file)
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
            case _ if kind == "text" and file.path.lower().endswith(_ARROW):
                # Their rows are the texts of a dataset, and what lies beside them is about it.
                raise UserError(
                    f"{file.path}: Arrow files are not read; save the dataset as parquet "
                    f"(Dataset.to_parquet), or leave out {file.path.rpartition('/')[2]!r}"
                )
            case _:
                yield read_text(file, part.source)
    except ImportError as error:
        raise UserError(
            f"{file.path}: {kind} needs {error.name}; pip install 'lit_llm[corpus]'"
        ) from error
    except Exception as error:
        if not is_read_error(error, file.path):
            raise
        piece = "" if part.stop is None else f"#{part.start}-{part.stop}"
        why = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        # What is wrong with the content raises an OSError without a number.
        content = isinstance(error, OSError) and error.errno is None
        content = content and not isinstance(error, ConnectionError | TimeoutError)
        reason = f"{'unreadable' if content else _UNREACHED}: {why}"
        yield Document(file.id + piece, file.source, file.path, "", reason, part.start)


def _is_pointer(file: SourceFile) -> bool:
    with open_raw(file.path) as raw:
        return git_lfs.is_pointer(raw.read(git_lfs.LARGEST))
