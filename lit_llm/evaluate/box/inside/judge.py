"""The process of the tests: calls the answer's functions in their process, and compares.

Its interpreter never runs the answer, so the answer can neither patch nor read what judges it.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from .values import decode, encode, receive, send


class AnswerEnded(BaseException):
    """The answer's process ended or broke the protocol. Tests that catch exceptions miss it."""


class AnswerRaised(Exception):
    """The answer raised an exception that is none of Python's own."""


class Answer:
    """The functions of an answer, in its process."""

    def __init__(self, calls: int, replies: int):
        self.calls, self.replies = calls, replies
        self.ended: str | None = None
        self.raised: BaseException | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """A function that calls the answer's one of this name."""

        def called(*arguments: Any, **keywords: Any) -> Any:
            return self._ask([name, encode(list(arguments)), encode(keywords)])

        called.__name__ = name
        return called

    def loaded(self) -> None:
        """Wait until the answer was run as a module.

        Raises:
            AnswerEnded, Exception: its process ended, or what it raised.
        """
        self._reply()

    def _ask(self, message: Any) -> Any:
        try:
            send(self.calls, message)
        except BrokenPipeError:
            self._end("its process ended")
        return self._reply()

    def _reply(self) -> Any:
        if self.ended is not None:
            raise AnswerEnded(self.ended)
        try:
            reply = receive(self.replies)
            if "raised" not in reply:
                return decode(reply["value"])
            name, arguments = reply["raised"]
            raised = _exception(str(name), decode(arguments))
        except EOFError:
            self._end("its process ended")
        except Exception as error:
            self._end(f"its process sent no value ({type(error).__name__})")
        self.raised = raised
        raise raised

    def _end(self, why: str) -> NoReturn:
        self.ended = why
        raise AnswerEnded(why) from None


def judge(
    answer: Answer, names: Sequence[str], tests: str, setup: str, word: str
) -> dict[str, str]:
    """Run the tests.

    Args:
        answer: the answer's process.
        names: functions of the answer that the tests call.
        tests: Python source, run as a module in which ``names`` are the answer's functions.
        setup: Python source of what else the tests call, run before them.
        word: what says that they passed.

    Returns:
        {"word": ``word``}, or {"reason", "detail"}.
    """
    module: dict[str, Any] = {"__name__": "tests"}
    try:
        answer.loaded()
        exec(compile(setup, "setup", "exec"), module)
        module |= {name: answer.function(name) for name in names}
        exec(compile(tests, "tests", "exec"), module)
    except BaseException as error:
        if answer.ended is None:
            reason = "raised" if error is answer.raised else "failed"
            detail = f"{type(error).__name__}: {error}"
            return {"reason": reason, "detail": detail[:500]}
    if answer.ended is not None:
        return {"reason": "ended", "detail": answer.ended}
    return {"word": word}


def silence() -> int:
    """Take the standard three from the tests, and return the file for the verdict."""
    verdict = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in range(3):
        os.dup2(nothing, file)
    return verdict


def _exception(name: str, arguments: list[Any]) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):  # not the arguments of this class
            return kind(*arguments)
    return AnswerRaised(name, *arguments)
