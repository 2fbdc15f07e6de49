"""GET /v1/models, and POST /tokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lit_llm.serve.api.backends.backend import Backend
from lit_llm.serve.api.body import read_body
from lit_llm.serve.api.context import key_of, service_of
from lit_llm.serve.api.errors import refused
from lit_llm.serve.api.requests.prompts import chat_prompt
from lit_llm.serve.api.requests.schema import TokenizeBody, checked
from lit_llm.serve.api.service import ServedModel

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The models that the key may use."""
    service, key = service_of(request), key_of(request)
    found = [_model(model) for model in service.models.values()]
    found += [_backend(backend) for backend in service.backends.values()]
    data = [model for model in found if key is None or key.allows(model["id"])]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def one_model(request: Request, name: str) -> Response:
    """One model."""
    service, key = service_of(request), key_of(request)
    if name in service.backends:
        service.check_allowed(name, key)
        return JSONResponse(_backend(service.backends[name]))
    return JSONResponse(_model(service.model(name, key)))


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The ids of a text, or of a conversation as a prompt."""
    service = service_of(request)
    body = checked(TokenizeBody, await read_body(request))
    model = service.model(body.model, key_of(request))
    ids = await service.encode(lambda: _ids(body, model))
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": model.max_seq_len})


def _ids(body: TokenizeBody, model: ServedModel) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise refused("give 'prompt' or 'messages'", param="prompt")
    if body.prompt is not None:
        return model.tokenizer.document_start + model.tokenizer.encode(body.prompt)
    if model.chat is None:
        raise refused(f"the model {model.name!r} has no chat template", param="messages")
    arguments = dict(body.chat_template_kwargs)
    if body.tools:
        arguments["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
    return chat_prompt(model.chat, body.messages or [], arguments).ids


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lit_llm",
        "max_model_len": model.max_seq_len,
        "root": model.root,
        "parent": model.parent,
    }


def _backend(backend: Backend) -> dict[str, Any]:
    """A model of another server; its address is not told."""
    return {"id": backend.name, "object": "model", "created": 0, "owned_by": "lit_llm"}
