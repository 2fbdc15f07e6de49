"""Standard input and output as they are found: closed, unread, in an encoding without some letters.

Imports nothing of the package: everything may use it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Have closed streams lead nowhere, and letters that an encoding lacks become a mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started the program
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper) and file.errors != "replace":
            file.reconfigure(errors="replace")


def start_again_in_utf8() -> None:
    """Start the program again in Python's UTF-8 mode where its files would be read as ASCII.

    That is LC_ALL=C with PYTHONUTF8=0: torch itself then cannot read its own source.
    """
    import codecs
    import locale

    name = locale.getpreferredencoding(False)
    if codecs.lookup(name).name != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_terminal(stream: Any) -> bool:
    """Whether somebody sits before ``stream``; what stands in for one need not know."""
    return bool(getattr(stream, "isatty", lambda: False)())


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON for standard output: with escapes where its encoding lacks letters."""
    import json  # not for --help

    plain = not str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=plain)


def say(text: str) -> None:
    """Print ``text``, if anybody still reads what this program writes."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        unread()


def unread() -> None:
    """Have what is still written lead nowhere: nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
