"""Errors of the API in OpenAI's form: {"error": {message, type, param, code}}."""

from __future__ import annotations

import math
from typing import Any

from lit_llm.people.limits import LimitReached

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An answer with an error status.

    Clients repeat a request by themselves after 408, 409, 429 and 5xx. These are therefore used
    only where the same request may succeed later.

    Args:
        status: of the HTTP answer.
        message: one line for a person.
        param: the field of the body that is wrong.
        code: a word for programs.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds, and ``retry-after-ms``, where they apply."""
        found = {} if self.status != 401 else {"WWW-Authenticate": "Bearer"}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
            found["retry-after-ms"] = str(max(1, math.ceil(1000 * self.retry_after)))
        return found


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A mistake in the request, which the client must correct: status 400."""
    return ApiError(400, message, param=param, code=code)


def overloaded(message: str) -> ApiError:
    """The queue is full: status 429, to be tried again after a second."""
    return ApiError(429, message, code="queue_full", retry_after=1.0)


def limit_reached(reached: LimitReached) -> ApiError:
    """A limit of the key: status 429, to be tried again when the request fits."""
    return ApiError(
        429,
        f"the limit of this key is reached: {reached}",
        code="rate_limit_exceeded",
        retry_after=reached.retry_after,
    )


def stopping() -> ApiError:
    """The server is about to end: status 503."""
    return ApiError(503, "the server is stopping", code="server_stopping", retry_after=1.0)


def broken() -> ApiError:
    """A bug or a failure of the machine; what happened is in the server's log: status 500."""
    return ApiError(500, "the server failed on this request; its log says why", code="failed")
