"""Files that are one document each: text, HTML, and files of a source tree."""

from __future__ import annotations

import dataclasses
import json
import re

from lit_llm.corpus.reading import code
from lit_llm.corpus.reading.documents import Document, decode, usable
from lit_llm.corpus.reading.files import COMPRESSED, open_input
from lit_llm.corpus.reading.sources import Source, SourceFile

_TAR = (257, b"ustar")  # where the mark of a tar archive is
_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\r?\n(.*?\n)?(---|\.\.\.)|\+\+\+[ \t]*\r?\n(.*?\n)?\+\+\+)[ \t]*(\r?\n|\Z)",
    re.DOTALL,
)
# First bytes of formats that hold text but are not read -> reason.
_OTHERS = {
    b"{\\rtf": "rich text (RTF): save it as plain text",
    b"filedesc://": "ARC file: convert it to WARC",
    b"%PDF-": "PDF: save its text",
    b"PK\3\4": "ZIP archive, or .docx, .epub: unpack it, or save its text",
}
_MARKDOWN = (".md", ".markdown", ".mdx", ".mdown", ".qmd", ".rmd")


def read_text(file: SourceFile, source: Source) -> Document:
    """Read a text file.

    Files with a line above ``source.max_line_bytes``, and formats that need another program (RTF,
    PDF, archives), are dropped. The text of a Jupyter notebook is its cells. The settings at
    the top of a Markdown file ("front matter", between lines of three hyphens or plus signs) are
    left out.

    Raises:
        OSError: the file cannot be read.
    """
    with open_input(file.path) as stream:
        data = stream.read()
    if reason := _other_format(data):
        return Document(file.id, file.source, file.path, "", reason)
    text, dropped, repaired, encoding = decode(data)
    name = COMPRESSED.sub("", file.path.lower())
    if name.endswith(".ipynb") and not dropped:
        # Checked again: JSON can contain what UTF-8 cannot hold.
        text, dropped, mended, _ = usable(_of_notebook(text))
        repaired = repaired or mended
    if name.endswith(_MARKDOWN):
        text = _FRONT_MATTER.sub("", text, count=1)
        dropped = dropped or (None if text and not text.isspace() else "empty")
    longest = source.max_line_bytes
    if len(data) > longest and any(len(line.encode()) > longest for line in text.splitlines()):
        text, dropped = "", source.too_long("line")
    return Document(
        file.id, file.source, file.path, text, dropped, encoding=encoding, repaired=repaired
    )


def _other_format(data: bytes) -> str | None:
    """Return why a file of a format that is not read is dropped; None for other files."""
    if data.startswith(_TAR[1], _TAR[0]):
        return "tar archive: unpack it"
    return next((reason for head, reason in _OTHERS.items() if data.startswith(head)), None)


def _of_notebook(written: str) -> str:
    """Return a Jupyter notebook's cells as Markdown, without outputs; other text unchanged."""
    try:
        notebook = json.loads(written)
    except (ValueError, RecursionError):
        return written
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        return written
    found = []
    for cell in (cell for cell in cells if isinstance(cell, dict)):
        source = cell.get("source")
        lines = source if isinstance(source, list) else [source]
        text = "".join(line for line in lines if isinstance(line, str)).strip("\n")
        if text.strip():
            found.append(f"```\n{text}\n```" if cell.get("cell_type") == "code" else text)
    return "\n\n".join(found)


def read_html(file: SourceFile) -> Document:
    """Read the main text of a page. Raises OSError."""
    with open_input(file.path) as stream:
        return page(file, file.id, 0, stream.read())


def page(
    file: SourceFile,
    id: str,
    offset: int,
    data: bytes,
    url: str | None = None,
    charset: str | None = None,
    flags: str | None = None,
) -> Document:
    """Extract the main text of a page.

    Args:
        file: the file that contains it.
        id: id of the document.
        offset: place in the file.
        data: the page's bytes.
        url: its address.
        charset: encoding that the server named.
        flags: the server's instructions to robots.
    """
    from lit_llm.corpus.reading.html_text import extract, robots

    html, dropped, repaired, encoding = decode(data, charset, html=True)
    text, none = extract(html) if html else ("", None)
    flags = ", ".join(filter(None, [flags, robots(html)])) or None
    reason = dropped or none or (None if text else "no main text")
    return Document(
        id, file.source, file.path, text, reason, offset, url=url, robots=flags, encoding=encoding,
        repaired=repaired,
    )  # fmt: skip


def read_code(file: SourceFile, source: Source) -> Document:
    """Read a file of source code; one that is skipped by its path is not opened. Raises OSError."""
    from lit_llm.corpus.filters.licensing import detect_license

    dropped = code.skip_path(file.id)
    read = (
        Document(file.id, file.source, file.path, "", dropped)
        if dropped
        else read_text(file, source)
    )
    if not dropped and not read.dropped:
        dropped = code.skip_text(read.text)
    return dataclasses.replace(
        read,
        text="" if dropped else read.text,
        dropped=dropped or read.dropped,
        license=detect_license(read.text) or file.license,  # the file's own header comes first
        language=code.language_of(file.id.rpartition("/")[2]),
    )
