"""Rows of JSONL and parquet files, with the number by which a user finds them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
    """(line number from 1, row) of a JSONL file, gzipped or not; empty lines are skipped.

    A line that is not UTF-8 is given as its bytes: whether that ends the work is the caller's to say.

    Raises:
        UserError: a line is no JSON object, or the file is cut; names file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    yield number, line
                    continue
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}:{number}: not valid JSON ({error})") from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: a row must be a JSON object, found {type(row).__name__}")
                yield number, row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number} ({error})") from error


def parquet_rows(
    path: Path, columns: Callable[[list[str]], list[str]] = lambda names: names
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a parquet file.

    Args:
        path: the file.
        columns: called with all column names, returns those to read (all, unless given).

    Raises:
        UserError: pyarrow is missing, or the file is not readable.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns(table.schema_arrow.names)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from error
