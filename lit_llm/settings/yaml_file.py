"""YAML reader that refuses files which would exhaust memory or the call stack."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from lit_llm.errors import UserError

DEEPEST = 100
"""Limit of nested lists and mappings. Configs have fewer than ten; readers recurse per level."""
MOST_FROM_ALIASES = 10_000
"""Limit of values that aliases (``*name``) may add: nine lines of ten aliases give a billion."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: str | Path, named: str | None = None) -> Any:
    """Read a YAML file into plain values.

    Args:
        file: path of the file.
        named: name of the file in messages. None: its path.

    Raises:
        UserError: not readable, not YAML, or refused by `check_yaml`; names the file and the line.
    """
    named = str(file) if named is None else named
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{named}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{named}: broken YAML ({error})") from None
    try:
        check_yaml(text)
        return yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{named}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{named}{where}: broken YAML ({why})") from None


def check_yaml(text: str) -> None:
    """Refuse YAML that needs unbounded time or memory, or that has duplicate keys.

    Raises:
        UserError: levels beyond `DEEPEST`, an anchor that contains itself, aliases beyond
            `MOST_FROM_ALIASES`, or a duplicate key in a mapping; names the line.
        yaml.YAMLError: not YAML.
    """
    # First pass over the parser's events: it limits the depth before compose() recurses.
    depth, aliases = 0, False
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise UserError(f"line {line}: more than {DEEPEST} levels; nest it less deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        aliases = aliases or isinstance(event, yaml.AliasEvent)
    # Second pass over the node graph, where an alias is a second reference to the same node. The
    # count of expanded values shows files that would use too much memory.
    root = yaml.compose(text, Loader=_Loader)
    sizes: dict[int, int] = {}
    if root is not None:
        values = _size(root, sizes, set())
        if aliases and values > len(sizes) + MOST_FROM_ALIASES:
            raise UserError(
                f"line {root.start_mark.line + 1}: its aliases stand for {values:,} values; "
                f"write the values out, or use fewer aliases (at most {MOST_FROM_ALIASES:,} values)"
            )


def guard_jsonargparse() -> None:
    """Make jsonargparse check the YAML that it reads: values, and sections in separate files.

    It also writes members of an Enum by their values: Lightning's Timer has one for a default.
    """
    from jsonargparse import get_loader, set_loader

    yaml.SafeDumper.add_multi_representer(
        Enum, lambda dumper, member: dumper.represent_data(member.value)
    )
    load = get_loader("yaml")
    if getattr(load, "checks", False):
        return

    def checked(text: str) -> Any:
        # Skip single words and numbers, which most values are
        if not set("{[&\n").isdisjoint(text):
            check_yaml(text)
        return load(text)

    checked.checks = True  # type: ignore[attr-defined]
    set_loader("yaml", checked, (yaml.YAMLError,))


def _size(node: yaml.Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Number of values of ``node`` after alias expansion; ``sizes`` caches the result per node."""
    if (known := sizes.get(id(node))) is not None:
        return known
    line = node.start_mark.line + 1
    if id(node) in open_nodes:
        raise UserError(f"line {line}: an anchor holds itself; write the value out")
    open_nodes.add(id(node))
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    size = 1 + sum(_size(part, sizes, open_nodes) for part in inner)
    open_nodes.remove(id(node))
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in lines:
            raise UserError(
                f"line {line}: the key {key.value} is there already, in line {lines[name]}; "
                "leave one of them out"
            )
        lines[name] = line
