"""llama.cpp itself, from the npm package node-llama-cpp, to compare GGUF files with: `make llama-cpp` installs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_PACKAGES = Path(os.environ.get("LLAMA_CPP_NPM", _HERE.parents[1] / ".peers-npm"))
_INDEX = _PACKAGES / "node_modules" / "node-llama-cpp" / "dist" / "index.js"
# llama.cpp takes GELU from a table of float16 values.
GELU = {"gpt2", "gptneox", "gemma2", "gemma3"}
TOLERANCE, GELU_TOLERANCE = 1e-4, 2e-2


def missing() -> str | None:
    """Why there is no llama.cpp here, or None."""
    if shutil.which("node") is None:
        return "llama.cpp: node is not installed (make llama-cpp)"
    if not _INDEX.is_file():
        return f"llama.cpp: node-llama-cpp is not in {_PACKAGES} (make llama-cpp)"
    return None


def version() -> str:
    """Of the release that is installed."""
    package = json.loads((_INDEX.parents[1] / "package.json").read_text())["version"]
    release = json.loads((_INDEX.parents[1] / "llama/binariesGithubRelease.json").read_text())
    return f"release {release['release']} in node-llama-cpp {package}"


class LlamaCpp:
    """A process that loads files. One that llama.cpp aborts in is an error of that file, and is started again."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            ["node", str(_HERE / "llama_cpp.mjs"), str(_INDEX)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, file: Path, texts: list[str] | None = None, rows: Any = ()) -> dict:
        """What it makes of ``file``.

        Args:
            file: to load.
            texts: to tokenize, without control tokens ("plain") and with them ("special").
            rows: lists of token ids; "logits" holds those of every position.

        Returns:
            The answer of llama_cpp.mjs, or {"error": why the file does not load}.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"file": str(file), "texts": texts or [], "rows": list(rows)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.close()
            self._start()
            return {"error": "llama.cpp aborted"}
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[LlamaCpp]:
    """llama.cpp; skips where it is not installed."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    engine = LlamaCpp()
    yield engine
    engine.close()
