"""The ASGI application."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import lit_llm
from lit_llm.serve.api.description import described
from lit_llm.serve.api.errors import ApiError
from lit_llm.serve.api.guard import Guard
from lit_llm.serve.api.routes import chat, completions, health, models, responses
from lit_llm.serve.api.service import Service


def create_app(service: Service) -> FastAPI:
    """The routes over a service.

    Args:
        service: models, gate and settings.
    """
    app = FastAPI(
        title="lit_llm",
        version=lit_llm.__version__,
        # The pages of the documentation would load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        # A redirect from /v1/models/ would name this server as http://. Behind a proxy with TLS a
        # client would send its key there without encryption.
        redirect_slashes=False,
    )
    app.state.service = service
    for module in (chat, completions, responses, models, health):
        app.include_router(module.router)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Guard, service=service)
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors, such as an unknown path, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    said = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for this path"}
    found = ApiError(error.status_code, said.get(error.status_code, error.detail), code="not_found")
    return JSONResponse(
        found.body(), status_code=error.status_code, headers=dict(error.headers or {})
    )
