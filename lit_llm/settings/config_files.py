"""``--config FILE`` on a command line, read the same way by all verbs.

The order on the command line does not matter: options always take precedence over files. Of several
files the later one takes precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lit_llm.errors import UserError
from lit_llm.settings.shell import path_word

OPTIONS = ("--config", "-c")


def split_config(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``args`` into the values of ``--config`` or ``-c``, and the other arguments.

    Arguments after ``--`` belong to another command. A missing value is "".
    """
    files, rest = [], []
    end = args.index("--") if "--" in args else len(args)
    words = iter(args[:end])
    for word in words:
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            rest.append(word)
        else:
            files.append(value if equals else next(words, ""))
    return files, [*rest, *args[end:]]


def with_config_files(args: Sequence[str], folders: tuple[str, ...]) -> list[str]:
    """Replace names of presets by the paths of their files, and put all files first.

    A parser that applies files and options in their order then gives options precedence.

    Args:
        args: command-line arguments of a verb.
        folders: preset folders that the verb accepts, see `find_config`.

    Raises:
        UserError: no such file or preset.
    """
    from lit_llm.settings.presets import find_config  # imports a YAML reader: not for --help

    files, rest = split_config(args)
    found = [["--config", path_word(find_config(file, folders))] for file in files]
    return [word for words in found for word in words] + rest


def naming_the_file(mistake: UserError, args: Sequence[str]) -> UserError:
    """Put the config file in front of a parser's message about a key or value of that file.

    Args:
        mistake: "unknown key K ..." or "K=VALUE: ...", with or without the sections of K.
        args: command-line arguments. A key that is an option there is no file's.
    """
    found = re.match(r"(?:unknown key (?P<key>[\w.]+)|(?P<named>[\w.]+)=(?P<value>.*?): )",
                     str(mistake))  # fmt: skip
    if found is None:
        return mistake
    from lit_llm.settings.yaml_file import read_yaml

    last = (found["key"] or found["named"]).rpartition(".")[2]
    files, rest = split_config(args)
    options = [word.partition("=")[0].rstrip("+") for word in rest if word.startswith("--")]
    if any(last in option.removeprefix("--").split(".") for option in options):
        return mistake
    for file in reversed(files):
        for value in _values(read_yaml(file), last):
            if found["key"] or str(value) == found["value"]:
                return UserError(f"{file}: {mistake}")
    return mistake


def _values(content: Any, key: str) -> Iterator[Any]:
    """All values of ``key`` in nested mappings and lists."""
    if isinstance(content, dict):
        for name, value in content.items():
            if str(name) == key:
                yield value
            yield from _values(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _values(value, key)
