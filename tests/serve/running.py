"""A server in a thread, over a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from lit_llm.people.gate import Gate
from lit_llm.serve.api.app import create_app
from lit_llm.serve.api.service import Service
from tests.serve.scripted import ScriptedEngine


@dataclass
class Running:
    """A server that answers at ``url``."""

    url: str
    service: Service
    gate: Gate
    engine: ScriptedEngine
    http: httpx.Client

    def chat(self, **body: Any) -> httpx.Response:
        """POST /v1/chat/completions with a question."""
        given = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **body}
        return self.http.post("/v1/chat/completions", json=given)

    def stream(self, **body: Any) -> list[Any]:
        """The events of a streamed chat, "[DONE]" as this text."""
        return events(self.chat(stream=True, **body).text)


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    data = [block.removeprefix("data: ") for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


@contextmanager
def serving(service: Service, engine: ScriptedEngine, root_path: str = "") -> Iterator[Running]:
    """Run a service until the block ends."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            root_path=root_path,
            log_level="warning",
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
    )
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            yield Running(url, service, service.gate, engine, http)
    finally:
        engine.close(0)
        server.should_exit = True
        thread.join(20)
        listening.close()
