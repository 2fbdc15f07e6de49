"""Lock of a run folder: one fit at a time writes into it, across all machines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lit_llm.errors import UserError
from lit_llm.io.streams import say

NAME = "run.lock"
BEAT_SECONDS = 10.0
"""Interval at which a running fit touches its lock file; other machines watch the file's time."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class _Holder:
    """The process that wrote a lock."""

    host: str
    pid: int
    job: str | None
    """The scheduler's job id.

    A job runs once at a time. If a job with this id starts again, its earlier run has ended.
    """

    @classmethod
    def of_this_process(cls) -> _Holder:
        return cls(socket.gethostname(), os.getpid(), os.environ.get("SLURM_JOB_ID"))

    @classmethod
    def read(cls, file: IO[str]) -> _Holder | None:
        """Read a lock file. None if it is empty or broken: its process ended before it trained."""
        file.seek(0)
        try:
            content = json.load(file)
            return cls(str(content["host"]), int(content["pid"]), content["job"])
        except (ValueError, KeyError, TypeError):
            return None


class RunLock:
    """Lock of one run folder, held from construction until `release`.

    A POSIX record lock on ``run.lock`` excludes other processes of the same machine, and of other
    machines if the file system supports such locks. It ends with the process, in whatever way the
    process ends. Other file systems do not show locks of other machines. There a lock counts as
    held if its file is touched during a waiting time.

    Args:
        folder: run folder. It is created if it does not exist.

    Raises:
        UserError: a running fit holds the lock.
    """

    def __init__(self, folder: Path):
        self._take(folder)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="run lock").start()

    def _take(self, folder: Path) -> None:
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder.absolute() / NAME
        handle, locks_work = self._lock()
        try:
            holder, mine = _Holder.read(handle), _Holder.of_this_process()
            if holder is not None and self._is_alive(holder, mine, locks_work):
                raise _refusal(folder, holder)
            handle.seek(0)
            handle.truncate()
            json.dump(vars(mine), handle)
            handle.flush()
        except BaseException:
            handle.close()
            raise
        self._handle = handle

    def move(self, renamed: Path) -> None:
        """Lock a new folder of the same name after the locked folder was renamed to ``renamed``."""
        before = self._handle
        self._take(self.file.parent)
        (renamed / NAME).unlink(missing_ok=True)
        before.close()

    def release(self) -> None:
        """Remove the lock file, and the folder if the lock created it and it is empty."""
        self._ended.set()
        if self._is_current(self._handle):
            self.file.unlink()
        self._handle.close()
        if self._made and self.file.parent.is_dir() and not any(self.file.parent.iterdir()):
            self.file.parent.rmdir()

    def _lock(self) -> tuple[IO[str], bool]:
        """Return the open, locked file, and whether the file system supports locks."""
        while True:
            handle = open(self.file, "a+", encoding="utf-8")  # noqa: SIM115 -- open while it holds
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _Holder.read(handle)
                if error.errno in _NO_LOCKS:
                    return handle, False
                handle.close()
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _refusal(self.file.parent, holder) from None
                raise
            if self._is_current(handle):
                return handle, True
            handle.close()

    def _is_current(self, handle: IO[str]) -> bool:
        """Whether the file still exists under its name and was not replaced since it was opened."""
        try:
            return os.path.samestat(os.fstat(handle.fileno()), self.file.stat())
        except FileNotFoundError:
            return False

    def _is_alive(self, holder: _Holder, mine: _Holder, locks_work: bool) -> bool:
        """Whether the holder recorded in a lock that this process could take is still running."""
        if holder == mine or (holder.job is not None and holder.job == mine.job):
            return False
        if holder.host == mine.host:
            return not locks_work and _runs(holder.pid)
        say(
            f"{self.file} is from {holder.host}, process {holder.pid}: waiting "
            f"{2.5 * BEAT_SECONDS:.0f} s to see whether it still runs"
        )
        before = self.file.stat().st_mtime_ns
        threading.Event().wait(2.5 * BEAT_SECONDS)
        return self.file.stat().st_mtime_ns != before

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                os.utime(self.file)
            except OSError:
                return  # the run folder was moved or removed during the run: Checkpoint reports it


def _refusal(folder: Path, holder: _Holder | None) -> UserError:
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return UserError(
        f"{folder}: {who} trains in this run folder now; wait for its end or stop it, or set "
        "trainer.default_root_dir to another folder"
    )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # the process of another user
    return True


def has_only_a_lock(folder: Path) -> bool:
    """Whether the folder holds nothing but a lock file.

    This is the state after a fit that ended or was killed before it trained.
    """
    return {file.name for file in folder.iterdir()} <= {NAME}
