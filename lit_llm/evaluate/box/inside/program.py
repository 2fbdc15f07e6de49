"""The process of the answer: runs it, then calls its functions as the judge asks.

It never gets the tests. What the answer changes in this interpreter, it changes for itself alone.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from .values import decode, encode, receive, send


def run_answer(answer: str, calls: int, replies: int) -> None:
    """Run the answer as a module, and serve calls until the judge ends the process.

    Args:
        answer: Python source.
        calls: messages [name, arguments, keyword arguments] of the judge come from here.
        replies: one message for each call goes here, and one for the module before.
    """
    module = types.ModuleType("answer")
    # Classes look for the names of their annotations in their module.
    sys.modules["answer"] = module
    names = module.__dict__
    send(replies, _reply(partial(_define, answer, names)))
    while True:
        name, arguments, keywords = receive(calls)
        arguments, keywords = decode(arguments), decode(keywords)
        send(replies, _reply(partial(_call, names, name, arguments, keywords)))


def _define(answer: str, names: dict[str, Any]) -> None:
    exec(compile(answer, "answer", "exec"), names)


def _call(names: dict[str, Any], name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if name not in names:
        raise NameError(f"name {name!r} is not defined")
    return names[name](*arguments, **keywords)


def _reply(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": encode(work())}
    except Exception as error:
        try:
            arguments = encode(list(error.args))
        except (TypeError, RecursionError):
            arguments = [str(error)]
        return {"raised": [type(error).__name__, arguments]}


def stdio_of_answer() -> None:
    """Make standard input empty, and put standard output where the errors go."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
