"""numba's compiler, its results kept in the user's cache: a kernel is compiled once a machine, not once a process."""

from __future__ import annotations

import os

from lit_llm.corpus.workspace import default_cache_dir
from lit_llm.errors import UserError


def _cache_folder() -> str | None:
    """$NUMBA_CACHE_DIR or a folder in our cache; None where neither can be written."""
    folder = os.environ.get("NUMBA_CACHE_DIR") or str(default_cache_dir() / "numba")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_folder = _cache_folder()
if _folder:
    os.environ["NUMBA_CACHE_DIR"] = _folder  # read when numba is first imported, here and in child processes
try:
    import numba
except ImportError as error:
    raise UserError("corpus: numba is not installed; `pip install 'lit_llm[corpus]'` brings it") from error
if _folder:
    numba.config.CACHE_DIR = _folder  # type: ignore[attr-defined]

# A cached kernel does not say whether its bounds were checked: under NUMBA_BOUNDSCHECK it has to be compiled anew.
_cache = _folder is not None and not os.environ.get("NUMBA_BOUNDSCHECK")

# Releases the GIL, so that threads run it side by side; division by zero gives inf, as in numpy.
njit = numba.njit(nogil=True, cache=_cache, error_model="numpy")
