"""Backend: another OpenAI-compatible server, and how a request to it is begun."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import httpx

from lit_llm.serve.api.errors import ApiError, broken, refused

_TRIES = 3
_AGAIN = (502, 503, 504)

log = logging.getLogger("lit_llm.serve")


@dataclass(frozen=True)
class Backend:
    """Another server.

    Attributes:
        name: of the model, for clients and for the other server.
        url: of its API, such as "http://10.0.0.2:8000/v1".
        key: for the other server.
        http: the connections to it.
    """

    name: str
    url: str
    key: str | None = None
    http: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(
            timeout=httpx.Timeout(600, connect=5), limits=httpx.Limits(max_connections=None)
        )
    )

    async def open(self, body: dict[str, Any]) -> httpx.Response:
        """Begin a request; nothing of the answer's body is read.

        A request is repeated if no connection was made, or the other server is not ready.

        Raises:
            ApiError: 400 with the other server's message; 429; 503 if it cannot be reached.
        """
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        for number in range(1, _TRIES + 1):
            request = self.http.build_request(
                "POST", f"{self.url}/chat/completions", json=body, headers=headers
            )
            try:
                response = await self.http.send(request, stream=True)
            except httpx.TransportError as error:
                log.warning("backend %s: %s", self.name, type(error).__name__)
                retry = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else:
                if response.status_code == 200:
                    return response
                retry = response.status_code in _AGAIN
                if not retry:
                    raise await _translated(response)
                await response.aclose()
            if not retry:
                break
            if number < _TRIES:
                await asyncio.sleep(0.2 * number)
        raise ApiError(
            503, f"the server behind {self.name!r} does not answer", code="backend_unavailable",
            retry_after=2.0,
        )  # fmt: skip


async def _translated(response: httpx.Response) -> ApiError:
    """The other server's refusal in our form; its failures and its opinion of our key stay here."""
    text = await response.aread()
    await response.aclose()
    status = response.status_code
    if status == 429:
        return ApiError(429, "the server behind this model is full", code="queue_full",
                        retry_after=1.0)  # fmt: skip
    if status in (400, 413, 422):
        try:
            error = json.loads(text)["error"]
            return refused(str(error["message"]), error.get("param"), error.get("code"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return refused("the server behind this model refuses the request")
    log.error("a backend answered with status %d", status)
    return broken()
