"""Progress of a build on stderr: a bar per stage on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Prints the progress of stages.

    Attributes:
        shown: whether anything is printed.
        verb: the beginning of each line.
    """

    def __init__(self, shown: bool, verb: str = "corpus") -> None:
        self.shown, self.verb = shown, verb

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], object]]:
        """Yield a function to call with the number of bytes done.

        On a terminal it moves a bar with MB/s and the remaining time. Elsewhere one line at the
        end gives the rate.

        Args:
            name: name of the stage.
            total: bytes of the stage.
            done: bytes of these that an earlier build has done.
        """
        from tqdm import tqdm

        started = time.perf_counter()
        hidden = None if self.shown else True  # None: tqdm shows the bar only on a terminal
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
        found = f", {done / 1e6:,.1f} MB of it done by an earlier build" if done else ""
        rate = f" at {(total - done) / 1e6 / seconds:,.1f} MB/s" if total > done else ""
        self.say(f"{name}: {total / 1e6:,.1f} MB in {seconds:,.1f} s{rate}{found}")

    def say(self, line: str) -> None:
        """Print one line, if ``shown``."""
        if not self.shown:
            return
        try:
            print(f"{self.verb}: {line}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            self.shown = False  # the reader of stderr is gone; the build goes on
