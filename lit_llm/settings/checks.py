"""Type checks of arguments given in Python, with one-line errors.

On the command line and in YAML, the parser checks the types.
"""

from __future__ import annotations

import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

import numpy as np

from lit_llm.errors import UserError


def check_types(
    prefix: str,
    function: Callable[..., Any],
    values: Mapping[str, Any],
    leave_out: Iterable[str] = (),
) -> None:
    """Check that ``values`` have the types that ``function``'s annotations declare.

    ``str`` also accepts a path, and ``float`` a whole number.

    Args:
        prefix: stands before the names in the message.
        function: its parameters that are keys of ``values`` are checked.
        values: parameter name -> value.
        leave_out: names that are not checked.

    Raises:
        UserError: names the first argument of a wrong type, as ``prefix.name``.
    """
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints or name not in values or name in leave_out:
            continue
        if not _fits(values[name], hints[name]):
            wanted = str(parameter.annotation).replace("Literal[", "one of [")
            raise UserError(f"{prefix}.{name} must be {wanted}, got {values[name]!r}")


def check_expression(text: str, where: str) -> None:
    """Check that ``text`` is a regular expression.

    Args:
        text: the expression.
        where: names the setting or the file in the message.

    Raises:
        UserError: it is not.
    """
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"{where}: {text!r} is no regular expression ({error})") from None


def plain_paths(value: Any) -> Any:
    """Convert paths to strings and numpy numbers to Python numbers, also inside containers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain_paths, value))
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if origin in (list, tuple):  # the only tuple type in use is tuple[X, ...]
        return isinstance(value, origin) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if hint is str:
        return isinstance(value, str | os.PathLike)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
