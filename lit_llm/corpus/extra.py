"""What a missing package is told as: an installation of lit_llm alone trains, and builds no
corpora."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lit_llm.errors import UserError


@contextmanager
def corpus_extra() -> Iterator[None]:
    """Make a UserError of a package that cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"making a corpus needs {error.name}: pip install 'lit_llm[corpus]'"
        ) from error
