"""Guard: what every request passes before a route sees it, and what every answer carries."""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_llm.people.gate import KeyRefused
from lit_llm.people.keys import Key
from lit_llm.serve.api.context import ClientGone
from lit_llm.serve.api.errors import ApiError, broken, stopping
from lit_llm.serve.api.service import Service

OPEN = ("/health/live",)
"""Routes that need no key."""
ADMIN = ("/metrics", "/openapi.json")
"""Routes that need a key with the scope "admin"."""
_REQUEST_ID = re.compile(r"[\w.-]{1,100}")

log = logging.getLogger("lit_llm.serve")


class Guard:
    """ASGI middleware: Host and Origin, key, scope, request id, and errors as JSON.

    Args:
        app: the routes.
        service: the server.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        begun: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message["status"])
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._check(scope, headers)
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            log.info("%s: the client has left", request_id)
        except ApiError as error:
            await _answer(error)(scope, receive, send_with_id)
        except Exception:
            # The traceback goes to the log alone. It holds no text of a prompt: Python prints lines
            # of code, not values.
            log.exception("%s: %s failed", request_id, _route(scope))
            if begun:
                raise
            await _answer(broken())(scope, receive, send_with_id)
        finally:
            status = str(begun[0]) if begun else "none"
            self._service.metrics.requests.labels(_route(scope), status).inc()

    async def _check(self, scope: Scope, headers: Headers) -> None:
        if self._service.loopback:
            check_local(headers, self._service.hosts)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN:
            return
        if self._service.draining and not path.startswith("/health"):
            raise stopping()
        try:
            key = await self._service.gate.identify(_secret(headers))
        except KeyRefused as refused:
            raise ApiError(401, str(refused), code="invalid_api_key") from None
        if key is not None:
            _check_scope(key, path)
        scope.setdefault("state", {})["key"] = key


def check_local(headers: Headers, hosts: Sequence[str] = ()) -> None:
    """Refuse what a web page in the user's browser sends to a server on its machine.

    A page of another host has another Origin. A page whose own name an attacker points at this
    machine (DNS rebinding) has that name as the Host.

    Args:
        headers: of the request.
        hosts: names of this machine beside localhost.

    Raises:
        ApiError: 403.
    """
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname
    if not _is_local(name) and name not in hosts:
        raise ApiError(
            403, "the Host header names another machine; use localhost, or --allow_host",
            code="wrong_host",
        )  # fmt: skip
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise ApiError(403, "pages of other origins may not use this server", code="wrong_origin")


def _is_local(name: str | None) -> bool:
    if name is None or name == "localhost":
        return name is not None
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _secret(headers: Headers) -> str | None:
    """The key of the request: ``Authorization: Bearer KEY`` or ``x-api-key: KEY``."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key")


def _check_scope(key: Key, path: str) -> None:
    wanted = "admin" if path.startswith(ADMIN) else "infer"
    # Whoever may administer may also look whether the server is ready.
    if wanted not in key.scopes and not path.startswith("/health"):
        raise ApiError(403, f"this key lacks the scope {wanted!r}", code="wrong_scope")


def _route(scope: Scope) -> str:
    """The route's own path, not what the client wrote, which could be anything."""
    route: Any = scope.get("route")
    return getattr(route, "path", "none")


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())
