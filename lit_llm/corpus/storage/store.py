"""Store of the stages' outputs: files named by their inputs, which are complete or do not exist.

A file's name is a digest of the settings and inputs of the step that writes it. So a build that was
killed finds the files that it had finished, a build with other settings finds the files that do not
depend on them, and no other record is needed. Disks lose data and people edit files, so files have
checksums, and reading a damaged file is an error.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lit_llm.corpus.output.shards import check_shards
from lit_llm.errors import UserError
from lit_llm.io.atomic import published
from lit_llm.models.tokenizer import Tokenizer

_COUNTS = b"lit_llm"  # key of a table's counters in its file's metadata
_CRC_BYTES = 4  # after an Arrow file: the format and its readers have no checksum of their own
# Part of a parquet file's metadata, followed by the CRC-32 of the file, computed with these zeros
# in its place. Parquet's pages have checksums, its metadata has none.
_SEAL, _ZEROS = b"lit_llm.crc32:", b"00000000"


class Damaged(UserError):
    """A file of this program cannot be read, or has other bytes than were written."""


def digest(*content: Any) -> str:
    """Return 32 hex digits of the SHA-256 of ``content`` as JSON.

    Objects that JSON does not support count by their ``repr``.
    """
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of stages' outputs, ``<stage>/<key><suffix>``.

    ``sweep`` keeps the outputs that this build used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()

    def path(self, stage: str, key: str, suffix: str = ".parquet") -> Path:
        """Return the path of an output, which may not exist yet, and count it as used."""
        path = self.folder / stage / (key + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._used.add(path)
        return path

    def sweep(self) -> None:
        """Remove what this build did not use: other settings' outputs, and unfinished files."""
        for stage in [path for path in self.folder.iterdir() if path.is_dir()]:
            for path in stage.iterdir():
                if path not in self._used:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not any(stage.iterdir()):
                stage.rmdir()


def check(output: Path) -> None:
    """Read all of a stage's output, a file or a folder of files.

    Raises:
        UserError: something in it is damaged; names the file.
    """
    for file in sorted(output.rglob("*")) if output.is_dir() else [output]:
        if file.suffix == ".parquet":
            with _undamaged(file):
                _check_seal(file)
        elif file.suffix == ".arrow":
            for _ in read_arrow(file):
                pass
        elif file.name == "index.json":
            check_shards(file.parent, contents=True)
        elif file.name == "tokenizer.json":
            Tokenizer.from_pretrained(file.parent)


def write_tables(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], counts: dict[str, Any]
) -> None:
    """Write a parquet file with a row group for each table.

    Its metadata gets ``counts`` with the values that they have after the last table.
    """
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "write_page_checksum": True,
    }
    with published(path) as partial, pq.ParquetWriter(partial, schema, **options) as file:
        for table in tables:
            if len(table):
                file.write_table(table, row_group_size=len(table))
        file.add_key_value_metadata({_COUNTS: json.dumps(counts).encode(), "crc32": _SEAL + _ZEROS})
        file.close()
        _seal(partial)


def _seal(path: Path) -> None:
    """Write the checksum into the file's metadata, in place of the zeros."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.rfind(_SEAL) + len(_SEAL)
        data[at : at + len(_ZEROS)] = f"{zlib.crc32(data):08x}".encode()


def _check_seal(path: Path) -> None:
    """Raise ValueError if the file's checksum is wrong."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(_SEAL) + len(_SEAL)
        end = at + len(_ZEROS)
        with memoryview(data) as view:
            crc = zlib.crc32(view[end:], zlib.crc32(_ZEROS, zlib.crc32(view[:at])))
        if data[at:end] != f"{crc:08x}".encode():
            raise ValueError("wrong checksum")


def read_counts(path: Path) -> dict[str, Any]:
    """Return the counters that a file was written with; raises `Damaged`."""
    with _undamaged(path):
        return json.loads(pq.read_metadata(path).metadata[_COUNTS])


def read_schema(path: Path) -> pa.Schema:
    """A file's columns; raises `Damaged`."""
    with _undamaged(path):
        return pq.read_schema(path)


def read_tables(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield a file's row groups, one at a time; raises `Damaged`."""
    with _undamaged(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def read_table(
    path: Path, columns: list[str] | None = None, rows: pc.Expression | None = None
) -> pa.Table:
    """Read a whole file, or those ``rows`` of it; raises `Damaged`."""
    with _undamaged(path):
        return pq.read_table(
            path, columns=columns, filters=rows, partitioning=None, page_checksum_verification=True
        )


def write_arrow(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write an Arrow file with a batch for each table.

    For data that does not compress, or whose type parquet does not have.
    """
    with published(path) as partial, open(partial, "wb") as file:
        summed = _Summed(file)
        with pa.PythonFile(summed, "w") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in tables:
                writer.write_table(table)
        file.write(summed.crc.to_bytes(_CRC_BYTES, "little"))


class _Summed:
    """A file to write to, with the CRC-32 of the written bytes."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.crc = file, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield an Arrow file's batches, memory-mapped; raises `Damaged`."""
    with _undamaged(path):
        data = pa.memory_map(str(path)).read_buffer()
        end = len(data) - _CRC_BYTES
        view = memoryview(data)
        if end < 0 or int.from_bytes(view[end:], "little") != zlib.crc32(view[:end]):
            raise ValueError("wrong checksum")
        reader = pa.ipc.open_file(data.slice(0, end))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turn the errors that libraries raise for damaged files into `Damaged`."""
    try:
        yield
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # An error with a number is the system's (such as a full disk), not the file's.
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> Damaged:
    said = " ".join(str(error).split())[:200]
    return Damaged(f"{path}: damaged ({said}); remove it and build the corpus again")
