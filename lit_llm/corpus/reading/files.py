"""Find and open input files, on this machine or behind a URL (s3://, gs://, hf://, memory://).

fsspec is imported at the first URL. Local paths need only the standard library.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from lit_llm.errors import UserError

# Names that file systems give to a version that changes with the content, the most reliable first.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "sha256",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


COMPRESSED = re.compile(r"\.(gz|zst|bz2|xz)$", re.I)  # suffixes of compressed files
_CHUNK = 2**17  # compressed bytes read at once: at most this much before a cut is lost


class SupportsRead(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Found:
    """A file that a pattern matches.

    Attributes:
        path: path or URL to open it with.
        id: path below the pattern's fixed folder, with "/".
        size: bytes as stored.
        version: changes when the content does: the time of the last change in nanoseconds, or the
            store's own version.
    """

    path: str
    id: str
    size: int
    version: str


def is_url(path: str) -> bool:
    """Whether fsspec opens the path ("s3://bucket/x"), and not this machine's file system."""
    return "://" in path


def is_read_error(error: Exception, path: str) -> bool:
    """Whether ``error`` says that the file cannot be read.

    That is an OSError, and for a URL also an exception of the package that connects to the store:
    these exceptions have no common base.
    """
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or (is_url(path) and package not in ("builtins", "lit_llm"))


def find(pattern: str) -> list[Found]:
    """Return the files that a path, a folder (with its subfolders) or a glob names.

    Hidden files are left out. The order is arbitrary; without a match the list is empty.

    Raises:
        UserError: a folder or the URL's file system cannot be listed, or needs a package that is
            not installed.
    """
    if is_url(pattern):
        return _find_remote(pattern)
    try:
        return _find_here(pattern)
    except OSError as error:
        raise UserError(
            f"data.sources: {error.filename or pattern} cannot be listed ({error.strerror})"
        ) from error


def _find_here(pattern: str) -> list[Found]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [found(path, path.parent)]
    if path.is_dir():
        return [found(file, path) for file in walk(path)]
    parts, fixed, base = path.parts, 0, Path()
    # A name that exists is not a pattern: a folder may be called "exp[1]".
    while fixed < len(parts) - 1 and (
        not glob.has_magic(parts[fixed]) or (base / parts[fixed]).exists()
    ):
        base, fixed = base / parts[fixed], fixed + 1
    escaped = os.path.join(glob.escape(str(base)), *parts[fixed:])
    files: list[Path] = []
    for match in map(Path, glob.glob(escaped, recursive=True)):
        if match.is_file() or _leads_nowhere(match):
            files.append(match)
        elif "**" not in pattern:  # '**' already lists the files in subfolders
            files += walk(match)
    return [found(file, base) for file in files]


def found(path: Path, base: Path) -> Found:
    """Describe a file of this machine, with its id relative to ``base``.

    A link that leads nowhere is described itself, so that the reader reports it.
    """
    stat = path.lstat() if _leads_nowhere(path) else path.stat()
    return Found(str(path), path.relative_to(base).as_posix(), stat.st_size, str(stat.st_mtime_ns))


def walk(folder: Path, skip: Sequence[str] = ()) -> list[Path]:
    """Return the files below ``folder``, without hidden ones and the folders named in ``skip``.

    A link to a folder that lies elsewhere is followed, to each folder once. Links that lead nowhere
    are returned.
    """
    files: list[Path] = []
    top, seen = os.path.realpath(folder), set[str]()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Sorted, because of two links to a folder the first one gives its files their ids.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in skip
            and not _leads_inside(Path(parent, name), top)
        )
        files += [
            path
            for name in names
            if not name.startswith(".")
            and ((path := Path(parent, name)).is_file() or _leads_nowhere(path))
        ]
    return files


def _leads_inside(path: Path, top: str) -> bool:
    """Whether the path is a link to a folder that `walk` meets below ``top`` anyway."""
    return path.is_symlink() and Path(os.path.realpath(path)).is_relative_to(top)


def _leads_nowhere(path: Path) -> bool:
    """Whether the path is a link to something that does not exist."""
    return path.is_symlink() and not path.exists()


def hidden(pattern: str) -> int:
    """Count the files and folders below a local folder that `find` leaves out as hidden.

    Their names begin with a dot. The content of a hidden folder is not counted.
    """
    if is_url(pattern):
        return 0
    count = 0
    for _, folders, names in os.walk(Path(pattern).expanduser()):
        count += sum(name.startswith(".") for name in folders + names)
        folders[:] = [name for name in folders if not name.startswith(".")]
    return count


def _raise(error: OSError) -> None:
    """Stop at a folder that cannot be listed; os.walk would silently skip it."""
    raise error


@contextmanager
def open_raw(path: str) -> Iterator[IO[bytes]]:
    """Open the file's bytes as stored, seekable."""
    if is_url(path):
        system, inner = _file_system(path)
        with system.open(inner, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


@contextmanager
def open_input(path: str) -> Iterator[SupportsRead]:
    """Open the file's bytes, decompressed if its name ends in .gz, .zst, .bz2 or .xz.

    A compressed stream can only be read forwards.

    Raises:
        OSError: the file cannot be opened, or ``read`` fails, also because the archive is damaged
            or cut.
        ImportError: .zst without the package zstandard.
    """
    with open_raw(path) as raw:
        compressed = COMPRESSED.search(path)
        match compressed and compressed[1].lower():
            case "gz":
                yield _Inflated(raw, lambda: zlib.decompressobj(31))  # 31: with gzip's header
            case "zst":
                import zstandard

                # `zstd --long=31`, as of large dumps, needs more than zstandard's 128 MB.
                press = zstandard.ZstdDecompressor(max_window_size=2**31)
                yield _Inflated(raw, press.decompressobj)
            case "bz2":
                yield _Inflated(raw, bz2.BZ2Decompressor)
            case "xz":
                yield _Inflated(raw, lzma.LZMADecompressor)
            case _:
                yield raw


@contextmanager
def open_utf8(path: str) -> Iterator[SupportsRead]:
    """`open_input`, but a file with the mark of UTF-16 is converted to UTF-8.

    The converted stream can only be read forwards.
    """
    if is_utf16(path):
        with open_input(path) as stream:
            yield _Transcoded(stream, "utf-16")
    else:
        with open_input(path) as stream:
            yield stream


def is_utf16(path: str) -> bool:
    """Whether the file begins with the mark of UTF-16, as PowerShell and Excel write it.

    Raises OSError.
    """
    with open_input(path) as stream:
        head = stream.read(4)
    return head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and head[2:] != b"\0\0"


class _Transcoded:
    """A stream in another encoding, read as UTF-8; bad bytes become U+FFFD."""

    def __init__(self, stream: SupportsRead, encoding: str) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder(encoding)("replace")
        self.left = b""  # converted, not read yet

    def read(self, size: int = -1) -> bytes:
        pieces, got = [self.left], len(self.left)
        while (size < 0 or got < size) and (chunk := self.stream.read(_CHUNK)):
            pieces.append(self.decoder.decode(chunk).encode())
            got += len(pieces[-1])
        if size < 0 or got < size:
            pieces.append(self.decoder.decode(b"", True).encode())
            self.decoder.reset()
        data = b"".join(pieces)
        self.left = data[size:] if size >= 0 else b""
        return data[:size] if size >= 0 else data


class _Inflated:
    """Compressed members one after the other, read as one stream.

    Data before damage is returned; after it, ``read`` raises.
    """

    def __init__(self, raw: IO[bytes], new_member: Callable[[], Any]) -> None:
        self.raw, self.new_member = raw, new_member
        self.member: Any = None
        self.left = b""  # decompressed, not read yet
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        # An error is kept until the data before it has been read.
        pieces, got = [self.left], len(self.left)
        while self.error is None and (size < 0 or got < size) and (chunk := self.raw.read(_CHUNK)):
            for piece in self._pieces(chunk):
                pieces.append(piece)
                got += len(piece)
        if self.error is None and self.member is not None and (size < 0 or got < size):
            self.error = OSError("the compressed file is cut")
        if self.error is not None and (size < 0 or not got):
            raise self.error
        data = b"".join(pieces)
        self.left = data[size:] if size >= 0 else b""
        return data[:size] if size >= 0 else data

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            if self.member is None:
                chunk = chunk.lstrip(b"\0")  # tapes and some writers pad the end with zeros
                if not chunk:
                    return
                self.member = self.new_member()
            try:
                yield self.member.decompress(chunk)
            except Exception as error:  # zlib's and zstandard's errors have no other common base
                self.error = OSError(f"the compressed file is damaged: {error}")
                return
            if not self.member.eof:
                return
            chunk, self.member = self.member.unused_data, None


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:
        # ValueError: fsspec does not know the protocol
        if not isinstance(error, ImportError | ValueError) and not is_read_error(error, url):
            raise
        raise UserError(f"data.sources: {url}: {error}") from None


def _find_remote(pattern: str) -> list[Found]:
    system, inner = _file_system(pattern)
    try:
        if glob.has_magic(inner) and not system.exists(inner):
            magic = min(inner.find(sign) for sign in "*?[" if sign in inner)
            base = inner[:magic].rpartition("/")[0]
            listed = dict(system.glob(inner, detail=True))
            # A matching folder stands for the files below it.
            for name in [name for name, info in listed.items() if info["type"] == "directory"]:
                del listed[name]
                if "**" not in inner:
                    listed |= system.find(name, detail=True)
        else:
            base = inner if system.isdir(inner) else inner.rpartition("/")[0]
            listed = system.find(inner, detail=True)
    except FileNotFoundError:
        return []
    except Exception as error:
        if not isinstance(error, ImportError) and not is_read_error(error, pattern):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"data.sources: {pattern} cannot be listed ({said})") from error
    files = []
    for name, info in listed.items():
        id = name[len(base) :].lstrip("/")
        if any(part.startswith(".") for part in id.split("/")):
            continue
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        files.append(Found(system.unstrip_protocol(name), id, int(info.get("size") or 0), version))
    return files
