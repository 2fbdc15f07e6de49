"""Error message for a missing package of the ``corpus`` extra.

lit_llm without extras can train, but cannot build corpora.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lit_llm.errors import UserError


@contextmanager
def corpus_extra() -> Iterator[None]:
    """Turn the error of a package that cannot be imported into a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"making a corpus needs {error.name}: pip install 'lit_llm[corpus]'"
        ) from error
