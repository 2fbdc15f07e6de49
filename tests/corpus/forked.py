"""Builds in processes that start with everything imported and compiled, and that can be killed with
their children."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from lit_llm.corpus.build import build
from lit_llm.corpus.config import CorpusConfig

_LONGEST = 200  # seconds: a build that takes as long hangs


class BuildServer:
    """A process that forks another for each build, at a cost of milliseconds, once it has made one
    itself.

    The server of ``multiprocessing`` is one for all tests of a process, and what it imports first
    is said once.
    """

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, config, folder)
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._received()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orders.send(None)
        self._process.join()

    def build(self, config: CorpusConfig, output: Path) -> float:
        """Build to the end; returns the seconds."""
        started = time.perf_counter()
        self._orders.send((config, output))
        self._received()
        assert self._received() == 0
        return time.perf_counter() - started

    def killed(self, config: CorpusConfig, output: Path, seconds: float) -> bool:
        """Kill a build and its workers after ``seconds``; False if it was done before."""
        self._orders.send((config, output))
        group = self._received()
        if not self._orders.poll(seconds):
            os.killpg(group, signal.SIGKILL)
        status = self._received()
        assert status in (0, -signal.SIGKILL)
        return status != 0

    def _received(self) -> int:
        assert self._orders.poll(_LONGEST), "the build hangs"
        return self._orders.recv()


def _serve(orders: Connection, config: CorpusConfig, folder: Path) -> None:
    build(config, folder, progress=False)
    orders.send(0)
    while order := orders.recv():
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setpgid(0, 0)
                build(*order, progress=False)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.setpgid(child, child)  # here too: it may be killed before it gets so far
        orders.send(child)
        orders.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
