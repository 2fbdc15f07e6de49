"""Settings that exclude each other, such as data.corpus and data.sources.

Giving both is a mistake. If a config file gives one and the command line the other, the command
line takes precedence.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError
from lit_llm.settings.config_files import split_config
from lit_llm.settings.yaml_file import read_yaml

OF_CORPUS = (
    "sources",
    "tokenizer",
    "vocab_size",
    "validation_fraction",
    "text_field",
    "max_line_bytes",
)
"""Settings of `PretrainDataModule` that a finished corpus decides."""

REPLACES: dict[str, tuple[str, ...]] = {
    "data.corpus": tuple(f"data.{name}" for name in OF_CORPUS),
    "data.tokenizer": ("data.vocab_size",),
    "data.validation": ("data.validation_fraction",),
    "model.init_from": ("model.transformer",),
}


def check_replaced(function: Any, values: Mapping[str, Any], prefix: str) -> None:
    """Refuse arguments of ``function`` that exclude each other.

    An argument that equals its default counts as not given.

    Args:
        function: its signature has the defaults.
        values: argument -> value.
        prefix: prefix of the settings in `REPLACES`, "data." or "model.".

    Raises:
        UserError: names both settings.
    """
    plain = inspect.signature(function).parameters
    given = {
        prefix + name
        for name, value in values.items()
        if name in plain and value is not None and not _same(value, plain[name].default)
    }
    for one, others in REPLACES.items():
        if one in given and (both := given.intersection(others)):
            raise UserError(_conflict(one, next(name for name in others if name in both)))


def settle_replaced(args: Sequence[str], defaults: Mapping[str, Any]) -> list[str]:
    """Reset settings of config files that the command line replaces.

    Args:
        args: command line of a Trainer's verb; ``--config`` is followed by existing files.
        defaults: setting -> its default, for the settings in `REPLACES`.

    Returns:
        ``args`` with an option for each replaced setting, which resets it to its default.

    Raises:
        UserError: both settings of a pair are on the command line, or both are in config files.
    """
    typed = _given_on_command_line(args)
    for one, others in REPLACES.items():
        for other in others:
            if one in typed and other in typed:
                raise UserError(_conflict(one, other))
    # Collect the settings of all config files that differ from their defaults; later files win.
    files, _ = split_config(args)
    in_files: dict[str, tuple[str, Any]] = {}
    for file in files:
        for group in ("data", "model"):
            for name, value in _section(file, group).items():
                in_files[f"{group}.{name}"] = (file, value)
    in_files = {
        name: (file, value)
        for name, (file, value) in in_files.items()
        if name in defaults
        and value is not None
        and not _same(value, defaults[name])
        # With a class on the command line, the file's settings may belong to another class.
        and not {name.partition(".")[0], f"{name.partition('.')[0]}.class_path"} & typed
    }
    # The command line replaces the other setting of a pair in a file, in both directions.
    off: dict[str, str] = {}
    for one, others in REPLACES.items():
        for other in others:
            for winner, loser in ((one, other), (other, one)):
                if winner in typed and loser in in_files and loser not in typed:
                    off[loser] = winner
    for one, others in REPLACES.items():
        for other in others:
            if one in in_files and other in in_files and not {one, other} & (typed | off.keys()):
                raise UserError(f"{in_files[other][0]}: {_conflict(one, other)}")
    # Reset each replaced setting to its default with an option after the user's arguments.
    words = list(args)
    for loser, winner in off.items():
        file, value = in_files[loser]
        print(f"--{winner} takes the place of {loser}={value} in {file}", file=sys.stderr)
        default = defaults[loser]
        words.append(f"--{loser}={'null' if default is None else default}")
    return words


def _conflict(one: str, other: str) -> str:
    return f"{one} and {other}: {one} takes the place of {other}; leave one of them out"


def _same(value: Any, default: Any) -> bool:
    return bool(type(value) is type(default) and value == default)


def _given_on_command_line(args: Sequence[str]) -> set[str]:
    """Settings that the command line gives a value, with ``init_args`` removed from the names."""
    typed = set()
    for word, following in zip(args, [*args, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        if not option.startswith("--") or (value if equals else following) == "null":
            continue
        parts = option.removeprefix("--").rstrip("+").replace(".init_args", "").split(".")
        typed.add(".".join(parts[:2]))
    return typed


def _section(file: str, group: str) -> dict[str, Any]:
    """Arguments in a section of a config file; empty if the section refers to another file."""
    content = read_yaml(Path(file))
    section = content.get(group) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        return {}
    inner = section.get("init_args", section)
    return {str(name): value for name, value in inner.items()} if isinstance(inner, dict) else {}
