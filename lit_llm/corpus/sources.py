"""Where text comes from: files by path or glob, JSONL, parquet, and the interpreter's own standard library.

What a machine's disk holds is messy, so a file or row that is not text becomes a ``Document`` with a reason to drop it
and the run goes on; what only the user can mend (nothing matches, a broken row, no such field) is a ``UserError``.
"""

from __future__ import annotations

import glob
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_llm.corpus.rows import JSON_ENDINGS, json_rows, parquet_rows
from lit_llm.errors import UserError

Sources = str | Sequence[str] | Mapping[str, str | Sequence[str]]

STDLIB = "stdlib"
_STDLIB_SMALLEST, _STDLIB_LARGEST = 200, 400_000  # bytes: below are stubs, above are tables
_STDLIB_KEPT_ANYWAY = "pydoc_data/topics.py"  # the language reference: above the cap, and the best prose there is


@dataclass(frozen=True)
class Document:
    """One text and where it came from.

    Attributes:
        id: path relative to the source's fixed folder (posix), with ``#row`` for a row; or the row's own ``id``.
        source: name of the source, fit for a folder name.
        path: the file it was read from.
        text: the text; empty when dropped.
        dropped: why it cannot be used ("not UTF-8", "NUL bytes", "empty", ...), or None.
    """

    id: str
    source: str
    path: str
    text: str
    dropped: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """One input file: its source's name, the path to open, and its id within the source."""

    source: str
    path: Path
    id: str

    @property
    def size(self):
        return self.path.stat().st_size

    @property
    def version(self):
        return str(self.path.stat().st_mtime_ns)


def list_files(sources: Sources) -> list[SourceFile]:
    """All input files: sources in the order given, the files of each by their ids.

    ``sources`` is "stdlib", a path or a glob, a list of these, or a dict from a name to one or more of these. Folders
    are walked, hidden files left out; relative paths start at the working directory. "stdlib" makes two sources, NAME
    and NAME-tests.

    Raises:
        UserError: a pattern matches no file, or a name cannot be a folder's name.
    """
    if isinstance(sources, list) and sources and isinstance(sources[0], Source):
        sources = {s.name: s.paths for s in sources}
    files: list[SourceFile] = []
    for name, patterns in _named(sources).items():
        seen: set[str] = set()
        found: list[SourceFile] = []
        for pattern in patterns:
            listed = _stdlib_files(name) if pattern == STDLIB else _glob_files(name, pattern)
            if not listed:
                raise UserError(f"data.sources: {pattern!r} matches no file (relative paths start at {os.getcwd()})")
            for file in listed:
                if (absolute := os.path.abspath(file.path)) not in seen:  # overlapping patterns in one source
                    seen.add(absolute)
                    found.append(file)
        files += sorted(found, key=lambda file: (file.source, file.id, str(file.path)))
    return files


def iter_documents(sources: Sources, text_field: str = "text") -> Iterator[Document]:
    """Every document of ``sources``, one at a time, in a fixed order; unusable ones with ``dropped`` set.

    A .jsonl, .jsonl.gz or .parquet file gives a document a row from ``text_field``, any other file is one document.

    Raises:
        UserError: as ``list_files``; a broken row (names file and line); no field ``text_field``; no pyarrow.
    """
    for file in list_files(sources):
        yield from read_documents(file, text_field)


def read_documents(file: SourceFile, text_field: str) -> Iterator[Document]:
    """The documents of one file; see ``iter_documents``."""
    name = file.path.name.lower()
    rows: Iterator[tuple[int | None, object, object]]
    if name.endswith(".parquet"):
        rows = _parquet_texts(file.path, text_field)
    elif name.endswith(JSON_ENDINGS):
        rows = _json_texts(file.path, text_field)
    else:
        rows = _whole_file(file.path)
    for number, identifier, value in rows:
        if identifier is None:
            identifier = file.id if number is None else f"{file.id}#{number}"
        text, dropped = _usable(value)
        yield Document(_writable(str(identifier)), file.source, _writable(str(file.path)), text, dropped)


def _writable(name: str) -> str:
    """File names and JSON strings can hold what UTF-8 cannot."""
    return name.encode("utf-8", "replace").decode()


def _usable(value: object) -> tuple[str, str | None]:
    """(text, None) or ("", why there is none)."""
    if isinstance(value, OSError):
        return "", "unreadable"
    if value is None:
        return "", "empty"
    if isinstance(value, bytes):
        if b"\0" in value:
            return "", "NUL bytes"
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return "", "not UTF-8"
    if not isinstance(value, str):
        return "", "not a string"
    if "\0" in value:
        return "", "NUL bytes"
    if not value.strip():
        return "", "empty"
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return "", "not UTF-8"
    return value, None


def _named(sources: Sources) -> dict[str, list[str]]:
    """Source names and their patterns; names of plain lists are made from the patterns."""
    if isinstance(sources, Mapping):
        named = {name: [value] if isinstance(value, str) else list(value) for name, value in sources.items()}
        taken: list[str] = []
        for name, patterns in named.items():
            if not isinstance(name, str) or not name or name != _safe(name):
                raise UserError(f"data.sources: {name!r} cannot name a folder; use letters, digits, '.', '-' and '_'")
            taken += [name, f"{name}-tests"] if STDLIB in patterns else [name]
        if twice := {name for name in taken if taken.count(name) > 1}:
            raise UserError(f"data.sources: two sources are named {min(twice)!r} ({STDLIB!r} also makes NAME-tests)")
    else:
        named = {}
        taken = []
        for pattern in [sources] if isinstance(sources, str) else sources:
            stem = name = _stem(pattern)
            number = 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken += [name, f"{name}-tests"] if pattern == STDLIB else [name]
            named[name] = [pattern]
    if not named or not all(named.values()):
        raise UserError("data.sources: empty; give a path, a glob or 'stdlib'")
    return named


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")


def _stem(pattern: str) -> str:
    """A folder name from a pattern: the last part that says something, without suffixes ('data/wiki/*.txt': wiki)."""
    for part in reversed(Path(pattern).expanduser().absolute().parts):
        words = re.sub(r"\[.*?\]|[*?]", "", part.lstrip("."))
        if glob.has_magic(part) and words.startswith("."):
            continue  # '*.txt' tells a type, not a name
        if stem := _safe(words.split(".")[0]):
            return stem
    return "source"


def _glob_files(source: str, pattern: str) -> list[SourceFile]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [SourceFile(source, path, path.name)]
    if path.is_dir():
        return [SourceFile(source, file, file.relative_to(path).as_posix()) for file in _walk(path)]
    parts = path.parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = Path(*parts[:fixed]) if fixed else Path()
    files: list[Path] = []
    for match in map(Path, glob.glob(str(path), recursive=True)):
        if match.is_file():
            files.append(match)
        elif "**" not in pattern:  # '**' already lists what is below
            files += _walk(match)
    return [SourceFile(source, file, file.relative_to(base).as_posix()) for file in files]


def _walk(folder: Path, skip: Sequence[str] = ()) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        files += [path for name in names if not name.startswith(".") and (path := Path(parent, name)).is_file()]
    return files


def _stdlib_files(source: str) -> list[SourceFile]:
    """Python files of the standard library; its tests, another kind of text, are a source of their own."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[SourceFile] = []
    for path in _walk(root, skip=("site-packages", "dist-packages")):
        if path.suffix != ".py":
            continue
        relative = path.relative_to(root)
        folders = set(relative.parts[:-1])
        tests = bool(folders & {"test", "tests", "idle_test"}) or path.name.startswith("test_")
        size = path.stat().st_size
        if _STDLIB_SMALLEST <= size <= _STDLIB_LARGEST or relative.as_posix() == _STDLIB_KEPT_ANYWAY:
            files.append(SourceFile(f"{source}-tests" if tests else source, path, relative.as_posix()))
    return files


def _whole_file(path: Path) -> Iterator[tuple[int | None, object, object]]:
    try:
        content: object = path.read_bytes()
    except OSError as error:
        content = error
    yield None, None, content


def _json_texts(path: Path, text_field: str) -> Iterator[tuple[int | None, object, object]]:
    """(line number, own id or None, value); the value is bytes where the line is not UTF-8."""
    for number, row in json_rows(path):
        if isinstance(row, bytes):
            yield number, None, row
        elif text_field not in row:
            raise UserError(_missing_field(f"{path}:{number}", text_field, list(row)))
        else:
            yield number, row.get("id"), row[text_field]


def _parquet_texts(path: Path, text_field: str) -> Iterator[tuple[int | None, object, object]]:
    def columns(names: list[str]) -> list[str]:
        if text_field not in names:
            raise UserError(_missing_field(str(path), text_field, names))
        return [name for name in ("id", text_field) if name in names]

    for number, row in parquet_rows(path, columns):
        yield number, row.get("id"), row[text_field]


def _missing_field(place: str, text_field: str, names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:20])) or "none"
    return f"{place}: no field {text_field!r} (data.text_field); the fields there are {listed}"


@dataclass(frozen=True)
class Source:
    """Adapter until the readers land."""

    name: str
    paths: Sequence[str]
    weight: float = 1.0
    language: str | None = None
    license: str | None = None
    domain: str | None = None
    text_field: str = "text"


def as_sources(sources: Sources | list[Source], text_field: str = "text") -> list[Source]:
    if isinstance(sources, list) and sources and isinstance(sources[0], Source):
        return sources
    return [Source(name, tuple(paths), text_field=text_field) for name, paths in _named(sources).items()]
