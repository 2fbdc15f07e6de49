"""What every benchmark's JSON says about where its numbers are from."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<machine>/<name>.json``: the result with machine, versions, command, commit.

    Ratios differ between processors, so a run on another machine does not replace the file of this
    one.
    """
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        # Where things lie on one machine is nobody's business.
        "command": " ".join(
            ["python", *(Path(arg).name if Path(arg).is_absolute() else arg for arg in sys.argv)]
        ),
        "commit": commit(RESULTS.parent.parent),
        "machine": {"cpu": _cpu("model name"), "cores": os.cpu_count(), "os": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("torch", "lightning", "litdata")},
        },
        **result,
    }
    file = RESULTS / machine_name() / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    return file


def commit(checkout: Path | str) -> str:
    """The commit of a checkout, "-dirty" added where tracked code differs from it; "unknown"
    without git or its folder, as on a machine that was sent the files alone."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(checkout), *args]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False
            ).stdout.strip()
        except OSError:
            return ""

    head = git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return head + ("-dirty" if changed else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine_name() -> str:
    """A folder's name for this kind of machine: its first GPU, else its processor and cores.

    "amx" marks processors with AMX's matrix products, which change the ratios more than anything
    else does.
    """
    import torch

    if torch.cuda.is_available():
        return _words(torch.cuda.get_device_name(0))
    filler = re.compile(r"\(R\)|\(TM\)|processor|cpu|\d+-core|@.*", re.IGNORECASE)
    kind = filler.sub(" ", _cpu("model name"))
    amx = " amx" if "amx_tile" in _cpu("flags").split() else ""
    return _words(f"{kind}{amx} {os.cpu_count()} cores")


def _words(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9.]+", text.lower()))


def _cpu(field: str) -> str:
    """A field of Linux's description of the first processor; elsewhere the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith(field)),
        platform.machine(),
    )
