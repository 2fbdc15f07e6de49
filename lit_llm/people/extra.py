"""Error message for a missing package of the ``serve`` extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lit_llm.errors import UserError


@contextmanager
def serve_extra() -> Iterator[None]:
    """Turn the error of a package that cannot be imported into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "postgres" if error.name == "psycopg" else "serve"
        raise UserError(f"serving needs {error.name}: pip install 'lit_llm[{extra}]'") from error
