"""GET /health/live, /health/ready and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_llm.serve.api.context import service_of
from lit_llm.serve.api.errors import ApiError

router = APIRouter()


@router.get("/health/live")
async def live() -> Response:
    """The process runs; this route needs no key."""
    return JSONResponse({"status": "live"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Requests are taken and answered; else 503."""
    service = service_of(request)
    if not service.ready():
        said = "the server is stopping" if service.draining else "the engine does not answer"
        raise ApiError(503, said, code="not_ready", retry_after=5.0)
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")
