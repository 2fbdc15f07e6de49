"""Servers of one model side by side: ours, transformers' and llama.cpp's.

Each runs in a process of its own. Those that are not measured are stopped by a signal, because a
server may use the processor even without a request.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMA_SERVER = ROOT / ".peers-llama/llama-server"
"""llama.cpp's server, built for this processor; see ``make llama-server``."""
XLLAMACPP = ROOT / ".venv-xllamacpp/bin/python"
"""An environment with the package xllamacpp, llama.cpp's server built for any processor."""


@dataclass(frozen=True)
class Weights:
    """The same weights for all servers.

    Attributes:
        folder: a Hugging Face directory, bfloat16.
        gguf: a GGUF file, bfloat16.
    """

    folder: Path
    gguf: Path


@dataclass(frozen=True)
class Contender:
    """A server that can be started.

    Attributes:
        command: its command line for weights, port, number of requests at the same time, positions
            of the longest of them, and threads.
        body: fields of each request beside prompt and limit.
        environment: variables beside those of this process.
    """

    command: Callable[[Weights, int, int, int, int], list[str]]
    body: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


def contenders() -> dict[str, Contender]:
    """Those that are at hand, by name."""
    found = {"ours": Contender(_ours, {"model": "model", "ignore_eos": True})}
    if (Path(sys.executable).parent / "transformers").exists():
        found["transformers serve"] = Contender(
            _transformers,
            {"generation_config": '{"eos_token_id": -1, "pad_token_id": 0, "do_sample": false}'},
            {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
    llama = {"model": "model", "ignore_eos": True}
    if LLAMA_SERVER.exists():
        found["llama.cpp"] = Contender(_llama, llama)
    if XLLAMACPP.exists():
        found["xllamacpp"] = Contender(_xllamacpp, llama)
    return found


def _ours(weights: Weights, port: int, requests: int, positions: int, threads: int) -> list[str]:
    return [
        sys.executable, "-m", "lit_llm", "serve", str(weights.folder), "--name", "model",
        "--port", str(port), "--store", str(weights.folder.parent / "ours.sqlite"),
        "--device", "cpu",
    ]  # fmt: skip


def _transformers(
    weights: Weights, port: int, requests: int, positions: int, threads: int
) -> list[str]:
    # Without a number it takes most of the free memory for its blocks of 64 tokens.
    blocks = 2 * requests * -(-positions // 64)
    return [
        str(Path(sys.executable).parent / "transformers"), "serve", str(weights.folder),
        "--continuous-batching", "--attn-implementation", "eager", "--device", "cpu",
        "--dtype", "bfloat16", "--port", str(port), "--host", "127.0.0.1",
        "--cb-block-size", "64", "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "512",
    ]  # fmt: skip


def _llama(weights: Weights, port: int, requests: int, positions: int, threads: int) -> list[str]:
    return [
        str(LLAMA_SERVER), "-m", str(weights.gguf), "--port", str(port), "--host", "127.0.0.1",
        "-t", str(threads), "-np", str(requests), "-c", str(requests * positions),
        "--no-kv-unified", "--no-webui",
    ]  # fmt: skip


def _xllamacpp(
    weights: Weights, port: int, requests: int, positions: int, threads: int
) -> list[str]:
    numbers = [str(number) for number in (port, requests, requests * positions, threads)]
    return [
        str(XLLAMACPP), str(Path(__file__).parent / "xllamacpp_server.py"), str(weights.gguf),
        *numbers,
    ]  # fmt: skip


class Server:
    """A running contender."""

    def __init__(self, name: str, contender: Contender, command: list[str], port: int, log: Path):
        self.name, self.body, self.port, self.log = name, contender.body, port, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, **contender.environment}
            )

    def wait(self, seconds: float = 180) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: it ended, or needs longer.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            for path in ("health/ready", "health"):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5):
                        return
                except (urllib.error.URLError, OSError):
                    time.sleep(0.2)
        raise RuntimeError(f"{self.name} does not answer: {self.log.read_text()[-2000:]}")

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run in this block only."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop it until `awake`."""
        self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def running(
    chosen: dict[str, Contender], weights: Weights, requests: int, positions: int, threads: int
) -> Iterator[list[Server]]:
    """Start servers one after the other, each stopped when it is ready; end all of them."""
    servers: list[Server] = []
    try:
        for name, contender in chosen.items():
            port = _free_port()
            command = contender.command(weights, port, requests, positions, threads)
            log = weights.folder.parent / f"{name.split()[0]}.log"
            servers.append(Server(name, contender, command, port, log))
            servers[-1].wait()
            servers[-1].stop()
        yield servers
    finally:
        for server in servers:
            server.end()


def _free_port() -> int:
    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
