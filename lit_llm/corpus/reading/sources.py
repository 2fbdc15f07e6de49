"""Sources of text: their settings, and the files that their paths, globs and URLs name.

``parts.list_parts`` makes work units of the files, and ``read.read_part`` documents of the units. A
file or row that is not text becomes a dropped document and the run goes on. An error that only the
user can fix (no file matches, no such field) is a ``UserError``.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import itertools
import os
import re
import sysconfig
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from lit_llm.corpus.ranges import check_section
from lit_llm.corpus.reading.code import is_license_file
from lit_llm.corpus.reading.files import COMPRESSED, Found, find, found, is_url, open_input, walk
from lit_llm.errors import UserError

Kind: TypeAlias = Literal["auto", "text", "html", "jsonl", "json", "csv", "parquet", "warc", "code"]

STDLIB = "stdlib"
_STDLIB_SMALLEST, _STDLIB_LARGEST = 200, 400_000  # bytes: smaller are stubs, larger are tables
# The language reference: larger than the limit, but the best prose of the library.
_STDLIB_KEPT_ANYWAY = "pydoc_data/topics.py"
_KINDS: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".ldjson": "jsonl",
    ".jl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".warc": "warc",
    ".wet": "warc",  # texts of Common Crawl, x.warc.wet.gz
    ".wat": "warc",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}


@dataclass(frozen=True)
class Source:
    """Files of one origin, and properties that all of them share.

    Attributes:
        name: letters, digits, '.', '-' and '_': it is used as a folder's name, as a column's value
            and in the data card.
        paths: a file, folder or glob, or several, on this machine or behind a URL (s3://, gs://,
            hf:// and others that fsspec opens). "stdlib" is the standard library of the
            interpreter, which makes two sources, NAME and NAME-tests.
        weight: share of the training mixture, relative to the other sources.
        language: BCP 47 tag of the language that the texts are said to be in.
        license: SPDX expression for documents that name no licence of their own.
        domain: topic ("encyclopedia", "law"); passed on with the documents, and counted in the data
            card.
        text_field: field with the text in rows of JSON, CSV and parquet. If rows have no "text",
            the default, it is "content", "body" or "document", and the build says so.
        kind: how files are read. "auto" decides by their names (.jsonl, .json, .csv, .tsv,
            .parquet, .warc, .html; others are text, one document per file). "code" is a tree of
            source code: other files, and generated, minified and vendored ones, are dropped.
        max_line_bytes: texts with a longer line, longer rows of JSONL and longer WARC records are
            dropped and counted: broken files may have lines that do not fit in memory.
        exclude: globs of files to leave out, by name ("*.min.js") or by path below the pattern's
            folder ("old/*").
    """

    name: str
    paths: str | Sequence[str]
    weight: float = 1.0
    language: str | None = None
    license: str | None = None
    domain: str | None = None
    text_field: str = "text"
    kind: Kind = "auto"
    max_line_bytes: int = 100 * 2**20
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "paths", (self.paths,) if isinstance(self.paths, str) else tuple(self.paths)
        )
        exclude = (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", exclude)
        if not isinstance(self.name, str) or not self.name or self.name != _safe(self.name):
            raise UserError(
                f"data.sources: {self.name!r} cannot name a folder; "
                "use letters, digits, '.', '-' and '_'"
            )
        if not self.paths:
            raise UserError(f"data.sources: {self.name} is empty; give a path, a glob or 'stdlib'")
        if self.kind not in get_args(Kind):
            raise UserError(
                f"data.sources: {self.name}.kind is {self.kind!r}; "
                f"choose from {', '.join(get_args(Kind))}"
            )
        check_section(self, "sources", f"data.sources: {self.name}: ")

    def too_long(self, what: str) -> str:
        """Return why a line or record above ``max_line_bytes`` is dropped; names the setting."""
        return f"{what} too long: above max_line_bytes={self.max_line_bytes}"

    def excludes(self, file: Found) -> bool:
        """Whether ``exclude`` leaves out the file."""
        names = (file.id, file.path, file.path.rpartition("/")[2])
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude for name in names)

    def kind_of(self, path: str) -> Kind:
        """Return how the file is read: ``kind``, or what its name says."""
        if self.kind != "auto":
            return self.kind
        return _KINDS.get(os.path.splitext(COMPRESSED.sub("", path.lower()))[1], "text")


Sources: TypeAlias = str | Source | Sequence[str | Source] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    Attributes:
        source: name of its source.
        path: path or URL to open it with.
        id: path within the source, unique there.
        size: bytes as stored.
        version: changes when the content does; see ``files.Found``.
        license: licence of the nearest LICENSE file, beside or above the file, in a source tree.
    """

    source: str
    path: str
    id: str
    size: int
    version: str
    license: str | None = None


def list_files(sources: Sources) -> list[SourceFile]:
    """Return all input files: sources in the order given, the files of each by their ids.

    ``sources`` is a ``Source``, "stdlib", a path, URL or glob, a list of these, or a dict from a
    name to one or more paths. Folders include their subfolders, without hidden files. Relative
    paths start at the working directory.

    Raises:
        UserError: a pattern matches no file, or a name is not valid as a folder's name.
    """
    return [file for source in as_sources(sources) for file in files_of(source)]


def files_of(source: Source, excluded: bool = False) -> list[SourceFile]:
    """Return the files of one source, by their ids; raises as ``list_files``.

    Args:
        source: the source.
        excluded: return the files that ``exclude`` leaves out instead.
    """
    named: dict[str, tuple[str, Found]] = {}
    for pattern in source.paths:
        listed = (
            _stdlib(source.name)
            if pattern == STDLIB
            else [(source.name, file) for file in find(pattern)]
        )
        if not listed:
            raise UserError(
                f"data.sources: {pattern!r} matches no file (relative paths start at {os.getcwd()})"
            )
        kept = [(name, file) for name, file in listed if source.excludes(file) is excluded]
        if not kept and not excluded:
            raise UserError(
                f"data.sources: {pattern!r}: exclude leaves out all of its {len(listed)} files"
            )
        for name, file in kept:
            # Patterns may overlap: a file counts once.
            named.setdefault(
                file.path if is_url(file.path) else os.path.abspath(file.path), (name, file)
            )
    ids = {absolute: file.id for absolute, (_, file) in named.items()}
    # Two folders have files with the same names: the ids get the folders, to be unique.
    if len(set(ids.values())) < len(ids):
        split = {absolute: absolute.replace(os.sep, "/").split("/") for absolute in named}
        levels = zip(*(parts[:-1] for parts in split.values()), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
        ids = {absolute: "/".join(parts[shared:]) for absolute, parts in split.items()}
    licenses = _tree_licenses([file for _, file in named.values()]) if source.kind == "code" else {}
    files = [
        SourceFile(
            name,
            file.path,
            writable(ids[absolute]),
            file.size,
            file.version,
            licenses.get(file.path),
        )
        for absolute, (name, file) in named.items()
    ]
    return sorted(files, key=lambda file: (file.source, file.id, file.path))


def as_sources(
    sources: Sources,
    text_field: str = "text",
    max_line_bytes: int = Source.max_line_bytes,
    exclude: Sequence[str] = (),
) -> list[Source]:
    """Make ``Source``s from the shorter forms; names of plain lists come from the patterns.

    The other arguments apply to the sources that are made; a given `Source` keeps its own.
    """
    known: dict[str, Any] = {
        "text_field": text_field,
        "max_line_bytes": max_line_bytes,
        "exclude": exclude,
    }
    made: list[Source] = []
    if isinstance(sources, Mapping):
        made = [Source(name, paths, **known) for name, paths in sources.items()]
    else:
        taken: set[str] = set()
        for given in [sources] if isinstance(sources, (str, Source)) else sources:
            if isinstance(given, str):
                stem = name = _stem(given)
                number = 2
                while name in taken:
                    name, number = f"{stem}-{number}", number + 1
                given = Source(name, (given,), **known)
            made.append(given)
            taken |= {given.name, f"{given.name}-tests"} if STDLIB in given.paths else {given.name}
    if not made:
        raise UserError("data.sources: empty; give a path, a glob or 'stdlib'")
    # Names must be unique, including the second source that "stdlib" makes.
    names = [
        name
        for source in made
        for name in (source.name, f"{source.name}-tests")[: 1 + (STDLIB in source.paths)]
    ]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"data.sources: two sources are named {min(twice)!r} ({STDLIB!r} also makes NAME-tests)"
        )
    return made


def renamed(source: Source, name: str) -> Source:
    """Return the source under another name, as for NAME-tests, which shares NAME's settings."""
    return source if source.name == name else dataclasses.replace(source, name=name)


def writable(name: str) -> str:
    """Replace what UTF-8 cannot hold in ``name``; file names and JSON strings can contain it."""
    return name.encode("utf-8", "replace").decode()


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")


def _stem(pattern: str) -> str:
    """Return a folder name for a pattern: the last part that is a name, without suffixes.

    Example: 'data/wiki/*.txt' gives wiki.
    """
    for part in reversed(Path(pattern).expanduser().absolute().parts):
        words = re.sub(r"\[.*?\]|[*?]", "", part.lstrip("."))
        if glob.has_magic(part) and words.startswith("."):
            continue  # '*.txt' is a type, not a name
        if stem := _safe(words.split(".")[0][:100]):  # leaves room for a suffix
            return stem
    return "source"


def _tree_licenses(files: list[Found]) -> dict[str, str]:
    """Return path -> licence of the nearest folder above that has LICENSE files."""
    from lit_llm.corpus.filters.licensing import detect_license
    from lit_llm.corpus.filters.spdx import UNRECOGNISED, all_of

    of_folder: dict[str, list[str]] = defaultdict(list)
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if is_license_file(name):
            try:
                with open_input(file.path) as stream:
                    text = stream.read(2**16).decode("utf-8", "replace")
            except OSError:
                continue  # the reader will report the error
            # A licence file that is not recognised must hide licences of the folders above.
            of_folder[folder].append(detect_license(text, len(text)) or UNRECOGNISED)
    # Each file gets the licence of the nearest folder that has one.
    joined = {folder: all_of(said) or UNRECOGNISED for folder, said in of_folder.items()}
    licenses = {}
    for file in files:
        folder = file.path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            if folder in joined:
                licenses[file.path] = joined[folder]
                break
    return licenses


def _stdlib(source: str) -> list[tuple[str, Found]]:
    """Return the Python files of the standard library.

    Its tests are a different kind of text and make a source of their own.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: list[tuple[str, Found]] = []
    for path in walk(root, skip=("site-packages", "dist-packages")):
        if path.suffix != ".py":
            continue
        file = found(path, root)
        folders = set(file.id.split("/")[:-1])
        tests = bool(folders & {"test", "tests", "idle_test"}) or path.name.startswith("test_")
        if _STDLIB_SMALLEST <= file.size <= _STDLIB_LARGEST or file.id == _STDLIB_KEPT_ANYWAY:
            files.append((f"{source}-tests" if tests else source, file))
    return files
