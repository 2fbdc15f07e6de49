"""Where what is made on the way is kept. Imports nothing of the package: everything may use it."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Where what is made on the way is kept: $LIT_LLM_CACHE, or lit_llm under the user's cache folder."""
    if "LIT_LLM_CACHE" in os.environ:
        return Path(os.environ["LIT_LLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lit_llm"
