"""What a build says meanwhile, on stderr: a bar a stage on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Attributes:
    shown: False says nothing at all.
    verb: what the lines begin with.
    """

    def __init__(self, shown: bool, verb: str = "corpus") -> None:
        self.shown, self.verb = shown, verb

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
        """A function to call with the bytes done.

        On a terminal it moves a bar with MB/s and the time that is left; elsewhere a line at the
        end says the rate.

        Args:
            name: of the stage.
            total: bytes.
            done: of these, found done by an earlier build.
        """
        from tqdm import tqdm

        started = time.perf_counter()
        hidden = None if self.shown else True  # None: only on a terminal
        with tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=hidden,
        ) as bar:
            yield bar.update
        seconds = time.perf_counter() - started
        found = f", {done / 1e6:,.1f} MB of it found done" if done else ""
        rate = f" at {(total - done) / 1e6 / seconds:,.1f} MB/s" if total > done else ""
        self.say(f"{name}: {total / 1e6:,.1f} MB in {seconds:,.1f} s{rate}{found}")

    def say(self, line: str) -> None:
        if not self.shown:
            return
        try:
            print(f"{self.verb}: {line}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            self.shown = False  # nobody reads it any more: no reason to stop
