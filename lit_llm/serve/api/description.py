"""The description of the API in OpenAPI's form: GET /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from lit_llm.serve.api.requests.fields import CHAT, COMPLETIONS, RESPONSES
from lit_llm.serve.api.requests.schema import ChatBody, CompletionBody, ResponsesBody, TokenizeBody

_BODIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, CHAT),
    "/v1/completions": (CompletionBody, COMPLETIONS),
    "/v1/responses": (ResponsesBody, RESPONSES),
    "/tokenize": (TokenizeBody, {}),
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def described(app: FastAPI) -> dict[str, Any]:
    """The description: routes, bodies with the fields without effect, and the form of errors."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = [(kind, "validation") for kind, _ in _BODIES.values()]
    _, schemas = models_json_schema(
        [(kind, "validation") for kind, _ in kinds],
        ref_template="#/components/schemas/{model}",
    )
    components = found.setdefault("components", {}).setdefault("schemas", {})
    components.clear()  # FastAPI's own form of errors, which no route answers with
    components.update(schemas["$defs"], Error=_ERROR)
    for path, (kind, fields) in _BODIES.items():
        properties = components[kind.__name__]["properties"]
        for name, field in fields.items():
            if field.effect == "accepted without effect":
                properties[name] = {"description": field.note}
        reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
        found["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": reference}},
        }
    error = {"$ref": "#/components/schemas/Error"}
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"] = {
                "200": {"description": "the answer"},
                "default": {
                    "description": "an error",
                    "content": {"application/json": {"schema": error}},
                },
            }
    app.openapi_schema = found
    return found
