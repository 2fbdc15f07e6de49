"""The server as a process: SIGTERM, a second signal, a dead engine, what is left on disk."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records
from tests.serve.running import events
from tests.serve.test_chat_api import error_of

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


class Process:
    """A running server."""

    def __init__(self, store: Path, grace: float):
        self.store = store
        self.program = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("process.py")), str(store), str(grace)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.program.stdout is not None
        said = self.program.stdout.readline()
        found = re.search(r"http://127.0.0.1:\d+", said)
        assert found, said + self.program.stdout.read()
        self.http = httpx.Client(base_url=found[0], timeout=30)

    def order(self, word: str) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(word + "\n")
        self.program.stdin.flush()

    def begin_stream(self) -> Any:
        """A stream whose first token was read."""
        return self.http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True})

    def signal(self, number: int) -> None:
        """Send a signal and wait until the server says so."""
        self.program.send_signal(number)
        assert self.program.stdout is not None
        assert "ending: running answers have" in self.program.stdout.readline()

    def requests(self) -> list[dict[str, Any]]:
        store = Store(self.store)
        found = Records(store).usage()
        store.close()
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[float], Process]]:
    started: list[Process] = []

    def begin(grace: float) -> Process:
        started.append(Process(tmp_path / "serve.sqlite", grace))
        return started[-1]

    yield begin
    for process in started:
        process.http.close()
        process.program.kill()
        process.program.communicate()


def test_sigterm_finishes_what_runs_and_refuses_the_new(start: Callable[[float], Process]) -> None:
    process = start(30)
    with process.begin_stream() as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        process.signal(signal.SIGTERM)
        assert error_of(process.http.post("/v1/chat/completions", json=BODY), 503)["code"] == (
            "server_stopping"
        )
        error_of(process.http.get("/health/ready"), 503)
        assert process.http.get("/health/live").status_code == 200
        process.order("go")
        text += "".join(pieces)
    chunks = events(text)
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"][0]["finish_reason"] == "stop"
    process.http.close()
    assert process.program.wait(20) == 0
    assert process.requests()[0]["requests"] == 1


def test_after_the_grace_streams_end_with_an_error(start: Callable[[float], Process]) -> None:
    process = start(0.2)
    with process.begin_stream() as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        process.signal(signal.SIGTERM)
        text += "".join(pieces)
    chunks = events(text)
    assert chunks[-1] == "[DONE]" and chunks[-2]["error"]["code"] == "server_stopping"
    process.http.close()
    assert process.program.wait(20) == 0


def test_a_dead_engine_ends_the_process(start: Callable[[float], Process]) -> None:
    """With status 70, and everybody who waits is told."""
    process = start(30)
    with process.begin_stream() as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        process.order("die")
        text += "".join(pieces)
    chunks = events(text)
    assert chunks[-1] == "[DONE]" and chunks[-2]["error"]["code"] == "engine_failed"
    process.http.close()
    assert process.program.wait(20) == 70


def test_kill_loses_nothing_that_clients_were_told(start: Callable[[float], Process]) -> None:
    process = start(30)
    process.order("go")
    told = [process.http.post("/v1/chat/completions", json=BODY).json()["usage"] for _ in range(5)]
    process.program.kill()
    process.program.wait(20)
    (row,) = process.requests()
    assert row["requests"] == 5
    for name in ("prompt_tokens", "completion_tokens"):
        assert row[name] == sum(usage[name] for usage in told)
