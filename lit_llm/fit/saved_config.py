"""A run's config.yaml, with absolute paths, so that it works from any folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lit_llm.data.chat.shipped_templates import TOKENS

PATHS: dict[str, tuple[str, ...]] = {
    "data": (
        "corpus",
        "sources",
        "validation",
        "tokenizer",
        "chat_template",
        "prompts",
        "cache_dir",
        "source_caps",
        "decontaminate",
    ),
    "model": ("init_from",),
}
"""Arguments of our modules that hold paths."""
_NAMES_TOO = ("chat_template", "decontaminate")  # or names of templates and tasks
_WORDS = ("stdlib", "general")  # names of data that lit_llm ships, which are not paths


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Make relative paths absolute in the config of a fit with lit_llm's modules.

    URLs, ``package:`` names and names of shipped data stay as they are.
    """
    config = dict(config)
    for section, names in PATHS.items():
        part = dict(config[section])
        if isinstance(part.get("init_args"), dict):
            inner = part["init_args"] = dict(part["init_args"])
            for name in names:
                if name in inner:
                    inner[name] = _absolute(name, inner[name])
            config[section] = part
    trainer = dict(config["trainer"])
    trainer["default_root_dir"] = _path(trainer["default_root_dir"])
    return {**config, "trainer": trainer}


def _absolute(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(name, item) for item in value]
    if isinstance(value, dict):
        # Instruction data have {path: repetitions}, texts have {name: paths}.
        if all(isinstance(item, int | float) for item in value.values()):
            return {_absolute(name, key): item for key, item in value.items()}
        return {key: _absolute(name, item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if name in _NAMES_TOO and (value in TOKENS or not Path(value).expanduser().is_file()):
        return value
    return _path(value)


def _path(text: str) -> str:
    if text in _WORDS or "://" in text or text.startswith("package:"):
        return text
    # Not normalized: ".." after a symbolic link leads elsewhere.
    return os.path.join(os.getcwd(), os.path.expanduser(text))
