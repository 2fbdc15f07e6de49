"""POST /v1/responses: OpenAI's newer API, for texts and function tools."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lit_llm.serve.api.answers.generation import Generation, Job
from lit_llm.serve.api.context import key_of, service_of
from lit_llm.serve.api.errors import ApiError, refused
from lit_llm.serve.api.event_stream import event
from lit_llm.serve.api.requests.fields import RESPONSES
from lit_llm.serve.api.requests.reading import read_fields, read_request
from lit_llm.serve.api.requests.response_input import messages_of, thoughts_without_effect
from lit_llm.serve.api.requests.schema import ChatBody, ResponsesBody
from lit_llm.serve.api.routes.answering import streamed, whole
from lit_llm.serve.api.routes.chat import chat_job
from lit_llm.serve.api.routes.response_items import ResponseItems

router = APIRouter()


@router.post("/v1/responses")
async def responses(request: Request) -> Response:
    """Answer an input, whole or as a stream of events."""
    service, key = service_of(request), key_of(request)
    body, _, ignored = await read_request(request, ResponsesBody, RESPONSES, service.unknown)
    tools, skipped = _tools(body)
    model = service.model(body.model, key)
    chat_fields = _chat_fields(body, tools)
    chat_body, more = read_fields(ChatBody, chat_fields, service.unknown)
    ignored += more
    job, without_effect = await service.encode(lambda: chat_job(chat_body, model))
    job = dataclasses.replace(job, id=f"resp_{secrets.token_hex(12)}", route="/v1/responses")
    ignored += without_effect + (["tools"] if skipped else []) + _parts_without_effect(body)
    generation = Generation(service, job, key)
    await generation.begin()
    shown = _shown(body, job, tools, skipped)
    if body.stream:
        return await streamed(request, generation, _events(generation, shown), ignored)
    return await whole(request, generation, _whole(generation, shown), ignored)


def _parts_without_effect(body: ResponsesBody) -> list[str]:
    """Fields inside others that have no effect: no template knows a verbosity or a summary."""
    found = {
        "text.verbosity": body.text and body.text.verbosity,
        "reasoning.summary": body.reasoning and body.reasoning.summary,
        "reasoning.generate_summary": body.reasoning and body.reasoning.generate_summary,
    }
    return [name for name, value in found.items() if value] + thoughts_without_effect(body.input)


def _tools(body: ResponsesBody) -> tuple[list[dict[str, Any]], list[str]]:
    """The function tools, and the types of the others, which are skipped."""
    functions = [tool for tool in body.tools if tool.get("type") == "function"]
    return functions, [str(tool.get("type")) for tool in body.tools if tool not in functions]


def _chat_fields(body: ResponsesBody, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of the same request to the chat API.

    Raises:
        ApiError: 400.
    """
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages_of(body.input, body.instructions),
        "stream": body.stream,
        "tools": [
            {"type": "function", "function": {k: v for k, v in tool.items()
                                              if k != "type" and v is not None}}
            for tool in tools
        ],
    }  # fmt: skip
    given = {
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "tool_choice": _choice(body.tool_choice, tools),
        "response_format": _format(body),
    }
    return fields | {name: value for name, value in given.items() if value is not None}


def _choice(choice: Any, tools: list[dict[str, Any]]) -> Any:
    """``tool_choice`` of the chat API; None if nothing is left to choose from.

    Clients send "auto" with every request, also where all of their tools are skipped.
    """
    if choice == "auto" and not tools:
        return None
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise refused("tool_choice names no function", param="tool_choice")
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    form = None if body.text is None else body.text.format
    if form is None:
        return None
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}


def _shown(
    body: ResponsesBody, job: Job, tools: list[dict[str, Any]], skipped: list[str]
) -> dict[str, Any]:
    """The fields of the response object that stay the same until its end."""
    metadata = dict(body.metadata)
    if skipped:
        metadata["skipped_tools"] = ", ".join(skipped)[:512]
    return {
        "id": job.id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": metadata,
        "model": job.model.name,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort},
        "temperature": job.sampling.temperature,
        "text": {"format": {"type": "text"} if body.text is None or body.text.format is None
                 else body.text.format},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in tools],
        "top_p": job.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }  # fmt: skip


def _ended(
    shown: dict[str, Any], items: ResponseItems, generation: Generation, finish: str
) -> dict[str, Any]:
    """The response object at its end."""
    used = generation.usage()
    usage = {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.prompt + used.completion,
    }
    cut = finish == "length"
    return {
        **shown,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": items.output,
        "usage": usage,
    }


async def _whole(generation: Generation, shown: dict[str, Any]) -> dict[str, Any]:
    items, finish = ResponseItems(), "stop"
    async for update in generation.updates():
        generation.keep_text(update)
        for delta in update.deltas:
            items.add(delta)
        finish = update.finish or finish
    items.close("incomplete" if finish == "length" else "completed")
    return _ended(shown, items, generation, finish)


async def _events(generation: Generation, shown: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The events in OpenAI's order, numbered from 0."""
    items, finish, number = ResponseItems(), "stop", 0

    def numbered(*found: dict[str, Any]) -> bytes:
        nonlocal number
        data = b""
        for one in found:
            data += event({**one, "sequence_number": number}, one["type"])
            number += 1
        return data

    yield numbered(
        {"type": "response.created", "response": shown},
        {"type": "response.in_progress", "response": shown},
    )
    try:
        async for update in generation.updates():
            generation.keep_text(update)
            for delta in update.deltas:
                yield numbered(*items.add(delta))
            finish = update.finish or finish
        yield numbered(*items.close("incomplete" if finish == "length" else "completed"))
        await generation.settle()
    except ApiError as error:
        failed = {"code": "server_error", "message": error.message}
        response = {**shown, "status": "failed", "error": failed, "output": items.output}
        yield numbered({"type": "response.failed", "response": response})
        return
    kind = "response.incomplete" if finish == "length" else "response.completed"
    yield numbered({"type": kind, "response": _ended(shown, items, generation, finish)})
