"""The first process of a box: confines itself, and forks into the answer's and the judge's."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

from . import landlock, namespaces, seccomp
from .confine import (
    Features,
    Limits,
    enter_box,
    interpreter_paths,
    keep_files,
    one_process,
)
from .judge import Answer, judge, silence
from .kernel import die_with_parent, drop_capabilities
from .program import run_answer, stdio_of_answer
from .values import receive, send


def main() -> None:
    """Run one program, or say which features the kernel has.

    The messages of `values` on standard input are the answer, then {"names", "tests", "setup",
    "word"}. Those on standard output are {"ready"} and the verdict of `judge`. What the answer
    prints goes to standard error.
    """
    settings = json.loads(sys.argv[1])
    sys.argv = ["answer"]
    if "probe" in settings:
        send(1, asdict(probe(settings["probe"])))
        return
    features, limits = Features(**settings["features"]), Limits(**settings["limits"])
    restrict = enter_box(features, limits, settings["folder"])
    answer = receive(0)
    calls, asks = os.pipe()
    replies, answers = os.pipe()
    child = os.fork()
    if child == 0:
        stdio_of_answer()
        keep_files(calls, answers)
        _confine(features, restrict, answers)
        try:
            run_answer(answer, calls, answers)
        finally:
            os._exit(1)  # whatever the answer had registered to run at the end

    def end_answer(status: int) -> NoReturn:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # here, because the first process of a container may never do so
        os._exit(status)

    signal.signal(signal.SIGTERM, lambda *_: end_answer(1))
    # Read after the fork: no memory of the answer's process ever held it.
    tests = receive(0)
    verdict = silence()
    keep_files(asks, replies, verdict)
    one_process(features, child)
    send(verdict, receive(replies))
    found = judge(Answer(asks, replies), **tests)
    send(verdict, found)
    end_answer(0)


def probe(folder: str) -> Features:
    """Try each feature in a child process, with ``folder`` as an empty folder."""

    def namespaced() -> None:
        namespaces.enter(folder, interpreter_paths(), 1 << 20)
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    def locked() -> None:
        drop_capabilities()
        landlock.restrict(interpreter_paths(), [])

    def filtered() -> None:
        drop_capabilities()
        seccomp.install()

    return Features(
        namespaces=_works(namespaced),
        landlock=landlock.version() if _works(locked) else 0,
        seccomp=_works(filtered),
    )


def _confine(features: Features, restrict: Callable[[], None], answers: int) -> None:
    """Confine the answer's process, and tell the judge."""
    said: dict[str, Any] = {"ready": True}
    try:
        if features != Features():
            die_with_parent()
        restrict()
        one_process(features)
    except OSError as error:
        said = {"box": str(error)}
    send(answers, said)
    if "box" in said:
        os._exit(1)


def _works(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
