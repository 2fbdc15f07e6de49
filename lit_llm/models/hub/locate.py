"""Resolve the path of a model or tokenizer, which may be a file in an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lit_llm.errors import UserError

_PACKAGE = "package:"


def locate(path: str | Path) -> Path:
    """Return the file or folder that ``path`` means.

    ``package:NAME/FILE`` is a file in an installed package's folder. The package is not imported,
    because some packages with weights import an inference engine.

    Raises:
        UserError: no such package.
    """
    text = str(path)
    if not text.startswith(_PACKAGE):
        return Path(path).expanduser()
    name, _, inner = text.removeprefix(_PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise UserError(
            f"{text}: no package {name!r} is installed here; pip install --no-deps {distribution}"
        )
    return Path(found.submodule_search_locations[0]) / inner
