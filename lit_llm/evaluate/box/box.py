"""Box: runs programs that a model wrote, each in two fresh processes that can reach nothing else.

One process runs the answer, the other one its tests. The tests call the answer's functions through
a pipe, and only plain data comes back. So the answer can read neither the tests nor the word that
means "passed", and what it patches, it patches for itself alone. Both processes are confined
(`inside/confine.py`) and are one process group, which is killed at the end.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from lit_llm.errors import UserError
from lit_llm.evaluate.box.inside.confine import Features, Limits

REASONS = ("passed", "failed", "raised", "ended", "time", "output", "disk")
"""Results of a program: passed; a test failed; the answer raised; its process ended before the
tests did; more seconds, output or disk than its limits."""

_START = (
    "import sys; sys.path.insert(0, {folder!r}); from inside.start import main; sys.path.pop(0); "
    "main()"
)
_SETUP_SECONDS = 60.0  # to start two processes on a machine that is busy
_GRACE_SECONDS = 1.0  # for the judge to end the answer's process itself
_END_SECONDS = 10.0  # for a process that was killed
_DISK_EVERY = 0.05  # seconds between two looks at a folder without a size of its own
_LONGEST = 100_000  # characters of an answer
_LEAST_LANDLOCK = 3  # earlier versions let a program truncate any file


@dataclass(frozen=True)
class Program:
    """An answer and its tests.

    Args:
        answer: Python source that a model wrote.
        tests: Python source, run after the answer, which passes if it raises nothing.
        names: functions of the answer that the tests call. Their arguments and results are copied
            and must be plain data: None, numbers, text, bytes, and lists, tuples, sets and dicts.
        setup: Python source of helpers that the tests need besides.
    """

    answer: str
    tests: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a program ended: one of `REASONS`, what happened in words, and its seconds."""

    reason: str
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.reason == "passed"


class BoxError(UserError):
    """The box itself failed, so nothing is known about the program."""


class Box:
    """What this machine offers to confine a program.

    Args:
        unsafe: run programs with limits alone, where the machine offers nothing else.
        limits: of each program.
        features: None: what a probe finds.

    Raises:
        UserError: the machine cannot keep a program from the files and the network, and ``unsafe``
            is not set.
    """

    def __init__(
        self,
        *,
        unsafe: bool = False,
        limits: Limits | None = None,
        features: Features | None = None,
    ):
        self.features = probe() if features is None else features
        self.limits = limits or Limits()
        if not (unsafe or confines(self.features)):
            raise UserError(
                f"--run_code: this machine offers {self}: a program could read and change your "
                "files. Use a Linux kernel with user namespaces or Landlock and with seccomp, or "
                "run on a machine without anything of worth with --run_code unsafe"
            )

    def __str__(self) -> str:
        names = {
            "namespaces": self.features.namespaces,
            f"landlock {self.features.landlock}": self.features.landlock,
            "seccomp": self.features.seccomp,
        }
        return "box: " + ", ".join([*(name for name, there in names.items() if there), "limits"])

    def run_all(
        self,
        programs: Sequence[Program],
        workers: int | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> list[Outcome]:
        """Run programs side by side.

        Args:
            programs: any number.
            workers: programs at the same time. None: one for each processor of this process.
            done: called after each program.

        Raises:
            BoxError: the box failed for one of them.
        """

        def one(program: Program) -> Outcome:
            outcome = self.run(program)
            done()
            return outcome

        with ThreadPoolExecutor(workers or len(_processors())) as pool:
            return list(pool.map(one, programs))

    def run(self, program: Program) -> Outcome:
        """Run one program. When this returns, its processes have ended and its files are gone.

        Raises:
            BoxError: the box failed.
        """
        if len(program.answer) > _LONGEST:
            return Outcome("failed", f"{len(program.answer):,} characters", 0.0)
        word = secrets.token_hex(16)
        tests = {"names": program.names, "tests": program.tests, "setup": program.setup}
        with tempfile.TemporaryDirectory(prefix="lit_llm_box_") as folder:
            settings = {"folder": folder, "features": asdict(self.features),
                        "limits": asdict(self.limits)}  # fmt: skip
            process = _start(settings)
            watch = _Watch(process, self.limits, None if self.features.namespaces else folder)
            try:
                watch.talk(_message(program.answer) + _message({**tests, "word": word}))
            finally:
                left = watch.end()
        if left:
            raise BoxError("a process of the program did not end")
        said = watch.messages()
        if not said or "ready" not in said[0]:
            why = said[0]["box"] if said else watch.printed[-500:].decode(errors="replace")
            raise BoxError(f"the box cannot be set up: {_printable(why)}")
        if watch.reason:
            return Outcome(watch.reason, f"more than its limit of {watch.reason}", watch.seconds)
        if len(said) < 2:
            return Outcome("ended", "the processes were ended", watch.seconds)
        if hmac.compare_digest(str(said[1].get("word", "")), word):
            return Outcome("passed", "", watch.seconds)
        return Outcome(said[1]["reason"], _printable(said[1]["detail"]), watch.seconds)


class _Watch:
    """Reads what a box says, within its limits, and ends it."""

    def __init__(
        self, process: subprocess.Popen[bytes], limits: Limits, folder: str | None
    ) -> None:
        self.process, self.limits, self.folder = process, limits, folder
        self.said, self.printed, self.output_bytes = b"", b"", 0
        self.reason, self.seconds = "", 0.0

    def talk(self, message: bytes) -> None:
        """Send the message, and read until the verdict or a limit."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        begin = time.monotonic()
        ready: float | None = None
        os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as ways:
            ways.register(process.stdin, selectors.EVENT_WRITE)
            ways.register(process.stdout, selectors.EVENT_READ)
            ways.register(process.stderr, selectors.EVENT_READ)
            # The verdict ends with the judge's process.
            while process.stdout in {key.fileobj for key in ways.get_map().values()}:
                now = time.monotonic()
                end = begin + _SETUP_SECONDS if ready is None else ready + self.limits.seconds
                if now > end or self._too_much():
                    self.reason = self.reason or "time"
                    break
                for key, _ in ways.select(min(end - now, _DISK_EVERY if self.folder else 60)):
                    if key.fileobj is process.stdin:
                        message = _write_some(process.stdin.fileno(), message)
                        if not message:
                            ways.unregister(process.stdin)
                        continue
                    found = os.read(key.fd, 1 << 16)
                    if not found:
                        ways.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        self.said += found
                        ready = ready or time.monotonic()
                    else:
                        self.output_bytes += len(found)
                        self.printed = (self.printed + found)[-2000:]
        self.seconds = time.monotonic() - (ready or begin)

    def _too_much(self) -> bool:
        if self.output_bytes > self.limits.output_bytes:
            self.reason = "output"
        elif self.folder and _size(Path(self.folder)) > self.limits.disk_bytes:
            self.reason = "disk"
        return bool(self.reason)

    def end(self) -> bool:
        """Kill the process group, and say whether one of its processes is left."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        # The first process was not waited for yet, so its number is still its own.
        os.kill(process.pid, signal.SIGTERM)
        _ended(process.stdout, _GRACE_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        # The last process of the program holds the other end.
        with process.stderr:
            return not _ended(process.stderr, _END_SECONDS)

    def messages(self) -> list[dict[str, Any]]:
        """The whole messages on standard output."""
        found, rest = [], self.said
        while len(rest) >= 4 and len(rest) >= 4 + (size := int.from_bytes(rest[:4], "big")):
            found.append(json.loads(rest[4 : 4 + size]))
            rest = rest[4 + size :]
        return found


def probe() -> Features:
    """Find out what the kernel offers to confine a program, by trying it in child processes."""
    with tempfile.TemporaryDirectory(prefix="lit_llm_box_") as folder:
        process = _start({"probe": folder})
        watch = _Watch(process, Limits(), None)
        try:
            watch.talk(b"")
        finally:
            watch.end()
    said = watch.messages()
    if not said:
        raise BoxError(f"the probe failed: {_printable(watch.printed.decode(errors='replace'))}")
    return Features(**said[0])


def confines(features: Features) -> bool:
    """Whether a program is kept from the files, the network and other processes."""
    hidden = features.namespaces or features.landlock >= _LEAST_LANDLOCK
    return hidden and features.seccomp


def _start(settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A fresh interpreter with an empty environment, as the first of its process group."""
    start = _START.format(folder=str(Path(__file__).parent))
    return subprocess.Popen(
        # Isolated, without site-packages, and without files of bytecode.
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", start, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={},
        start_new_session=True,
    )


def _ended(pipe: IO[bytes], seconds: float) -> bool:
    """Read until nobody holds the other end of a pipe; False if somebody still does then."""
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as way:
        way.register(pipe, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if way.select(left) and not os.read(pipe.fileno(), 1 << 16):
                return True
    return False


def _message(content: Any) -> bytes:
    body = json.dumps(content).encode()
    return len(body).to_bytes(4, "big") + body


def _write_some(file: int, message: bytes) -> bytes:
    """Write what fits, and return the rest; nothing if nobody reads any more."""
    try:
        return message[os.write(file, message) :]
    except BlockingIOError:
        return message
    except BrokenPipeError:
        return b""


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take on disk, with a block for the name of each."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            total += 4096 + 512 * file.lstat().st_blocks
    return total


def _printable(text: str) -> str:
    """The text in one line, without what would change a terminal: an answer may have chosen it."""
    return "".join(one if one.isprintable() else " " for one in text)


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
