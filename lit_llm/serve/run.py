"""Runs the application with uvicorn: start, drain at SIGTERM, and the end of a dead engine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from dataclasses import dataclass
from types import FrameType

import uvicorn

from lit_llm.errors import UserError
from lit_llm.io.streams import say
from lit_llm.serve.api.app import create_app
from lit_llm.serve.api.service import Service

ENGINE_FAILED = 70
"""Exit status when the engine is dead: EX_SOFTWARE of sysexits.h."""
_LOOK = 1.0
"""Seconds between two looks at the engine."""
_TELL = 5
"""Seconds in which the last answers are written after the engine has ended them."""
_FORGET = 3600.0
"""Seconds between two deletions of old records."""
_KEEP_ALIVE = 150
"""Seconds that a connection may be idle. A client or a proxy that still takes it for open gets an
error. So the server waits longer than the pools of others: Caddy 120 s, Go 90, nginx 60."""

log = logging.getLogger("lit_llm.serve")


@dataclass(frozen=True)
class Listening:
    """Where and how the server listens.

    Attributes:
        host, port: address; port 0 takes a free one.
        grace: seconds that running answers have after SIGTERM.
        root_path: path under which a proxy serves us.
        retention_days: age at which records are deleted; None: never.
    """

    host: str
    port: int
    grace: float
    root_path: str
    retention_days: float | None


def run_service(service: Service, listening: Listening) -> int:
    """Serve until a signal or the engine's end; returns the exit status.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        listener = _listen(listening.host, listening.port)
    except OSError as error:
        raise UserError(
            f"--host {listening.host} --port {listening.port}: {error.strerror}"
        ) from None
    config = uvicorn.Config(
        create_app(service),
        root_path=listening.root_path,
        log_level="warning",
        access_log=False,  # paths and addresses of people; the records say who asked for what
        timeout_graceful_shutdown=_TELL,
        timeout_keep_alive=_KEEP_ALIVE,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # anybody can write X-Forwarded-*, and nothing here needs it
    )
    server = _Server(config, service, listening)
    port = listener.getsockname()[1]
    host = f"[{listening.host}]" if ":" in listening.host else listening.host
    say(f"serving {', '.join(service.names)} at http://{host}:{port}/v1")
    server.run(sockets=[listener])
    return ENGINE_FAILED if service.failed else 0


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


class _Server(uvicorn.Server):
    """uvicorn's server, which answers new requests with 503 while the running ones end.

    uvicorn alone would close the socket at once, and cut answers off without a word.
    """

    def __init__(self, config: uvicorn.Config, service: Service, listening: Listening):
        super().__init__(config)
        self._service, self._listening = service, listening

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and look after the engine beside it."""
        tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._forget())]
        try:
            await super().serve(sockets)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At the first signal let the answers end, at the second one end now."""
        if self._service.draining:
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        say(f"ending: running answers have {self._listening.grace:g} seconds")
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        for engine in {id(m.engine): m.engine for m in self._service.models.values()}.values():
            engine.close(self._listening.grace)
        self.should_exit = True

    async def _watch(self) -> None:
        """End the process if the engine is dead, after every client was told."""
        while all(model.engine.alive() for model in self._service.models.values()):
            await asyncio.sleep(_LOOK)
        if self._service.draining:
            return
        log.critical("the engine is dead: the server ends with status %d", ENGINE_FAILED)
        self._service.fail()
        self.should_exit = True

    async def _forget(self) -> None:
        days = self._listening.retention_days
        while days is not None:
            await self._service.gate.forget(days)
            await asyncio.sleep(_FORGET)
