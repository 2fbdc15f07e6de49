"""Databases for tests: SQLite, and a PostgreSQL of the machine where there is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a new PostgreSQL server, which listens on a socket in ``folder`` alone."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if importlib.util.find_spec("psycopg") is None or not binaries:
        pytest.skip("PostgreSQL or psycopg is not installed")
    data, root = folder / "data", os.getuid() == 0
    folder.mkdir(exist_ok=True)

    def run(program: str, *args: str) -> None:
        command = [str(binaries[-1] / program), *args]
        if root:  # the server refuses to run as root
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    if root:
        for parent in (folder, *folder.parents):
            if parent == Path("/tmp") or parent == Path("/"):
                break
            parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    run("initdb", "-D", str(data), "-A", "trust", "-U", "lit", "--no-sync")
    options = f"-k {folder} -c listen_addresses=''"
    run("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql://lit@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
