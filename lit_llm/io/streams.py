"""Standard input and output that may be closed, unread, or in a limited encoding.

This module imports nothing of the package, so that every module may import it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Redirect closed streams to the null device, and replace characters that cannot be encoded."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper) and file.errors != "replace":
            file.reconfigure(errors="replace")


def start_again_in_utf8() -> None:
    """Restart the program in Python's UTF-8 mode if files would be read as ASCII.

    This is the case with LC_ALL=C and PYTHONUTF8=0, where torch cannot read its own source.
    """
    import codecs
    import locale

    name = locale.getpreferredencoding(False)
    if codecs.lookup(name).name != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_terminal(stream: Any) -> bool:
    """Whether ``stream`` is a terminal. Objects without ``isatty`` are not."""
    return bool(getattr(stream, "isatty", lambda: False)())


def json_text(value: Any, indent: int | None = None) -> str:
    """Format ``value`` as JSON for standard output, with escapes unless the encoding is Unicode."""
    import json  # imported here to keep --help fast

    plain = not str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=plain)


def say(text: str) -> None:
    """Print ``text``, unless the reader of the output is gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        unread()


def unread() -> None:
    """Redirect further output to the null device, because nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
