"""Databases for tests: SQLite, and a PostgreSQL of the machine where there is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a new PostgreSQL server, which listens on a socket of its folder alone."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if importlib.util.find_spec("psycopg") is None or not binaries:
        pytest.skip("PostgreSQL or psycopg is not installed")
    root = os.getuid() == 0
    # Not below pytest's own folder, which every other run of pytest closes to other users.
    folder = Path(tempfile.mkdtemp(prefix="lit_llm_pg"))
    data = folder / "data"

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
        shutil.chown(folder, "postgres")
    run("initdb", "-D", str(data), "-A", "trust", "-U", "lit", "--no-sync")
    options = f"-k {folder} -c listen_addresses=''"
    run("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql://lit@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
