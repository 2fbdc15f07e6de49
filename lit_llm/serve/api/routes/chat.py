"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lit_llm.serve.api.answers.answer_parser import PLAIN, AnswerParser, syntax_of
from lit_llm.serve.api.answers.deltas import (
    CallArguments,
    CallBegin,
    Content,
    Delta,
    Message,
    Reasoning,
)
from lit_llm.serve.api.answers.generation import Generation, Job
from lit_llm.serve.api.answers.reader import Alternatives, Update
from lit_llm.serve.api.backends.forwarding import forward
from lit_llm.serve.api.context import key_of, service_of
from lit_llm.serve.api.errors import refused
from lit_llm.serve.api.event_stream import DONE, event
from lit_llm.serve.api.requests.fields import CHAT
from lit_llm.serve.api.requests.grammars import call_grammar, format_grammar
from lit_llm.serve.api.requests.prompts import chat_prompt, writes_thoughts
from lit_llm.serve.api.requests.reading import read_request
from lit_llm.serve.api.requests.schema import ChatBody, NamedTool
from lit_llm.serve.api.routes.answering import streamed, whole
from lit_llm.serve.api.service import ServedModel

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    service, key = service_of(request), key_of(request)
    body, fields, ignored = await read_request(request, ChatBody, CHAT, service.unknown)
    ignored += body.without_effect
    if (backend := service.backends.get(body.model)) is not None:
        service.check_allowed(backend.name, key)
        return await forward(request, backend, body, fields, ignored)
    model = service.model(body.model, key)
    job, without_effect = await service.encode(lambda: chat_job(body, model))
    ignored += without_effect
    generation = Generation(service, job, key)
    await generation.begin()
    if body.stream:
        return await streamed(request, generation, _events(generation, job, body), ignored)
    return await whole(request, generation, _whole(generation, job, body), ignored)


def chat_job(body: ChatBody, model: ServedModel) -> tuple[Job, list[str]]:
    """The job of a request, and the fields that have no effect on it.

    Raises:
        ApiError: 400.
    """
    if model.chat is None:
        raise refused(
            f"the model {model.name!r} has no chat template; use /v1/completions",
            param="model",
            code="no_chat_template",
        )
    body.check_stream_options()
    _check_together(body)
    calls = bool(body.tools) and body.tool_choice != "none"
    forced = call_grammar(body.tools, body.tool_choice)
    arguments = dict(body.chat_template_kwargs)
    if calls:
        arguments["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
    prompt = chat_prompt(model.chat, body.messages, arguments, body.reasoning_effort)
    template = model.chat.template
    thoughts, names = writes_thoughts(model.chat), [tool.function.name for tool in body.tools]
    grammar = forced or format_grammar(body.response_format, body.tools if calls else ())

    def parser() -> AnswerParser:
        return AnswerParser(
            # A grammar rules the answer from its first token: there is no room for thoughts.
            reasoning=thoughts and grammar is None,
            thinking=prompt.thinking and grammar is None,
            # Under a grammar a call is a JSON object for every family of models.
            syntax=None if not calls else PLAIN if grammar else syntax_of(template),
            tools=names,
            forced=forced is not None,
        )

    job = Job(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        route="/v1/chat/completions",
        model=model,
        prompts=[prompt.ids],
        limit=body.limit,
        n=body.n,
        sampling=body.sampling(model.tokenizer.vocab_size),
        seed=body.chosen_seed(),
        stop=body.stops,
        stop_ids=[] if body.ignore_eos else model.chat.stop_ids,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
        parser=parser,
        user=body.user,
    )
    return job, prompt.ignored


def _check_together(body: ChatBody) -> None:
    """Refuse fields that contradict one another."""
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise refused("max_tokens and max_completion_tokens differ; give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs needs logprobs=true", param="top_logprobs")
    if "tools" in body.chat_template_kwargs:
        raise refused("give tools in 'tools'", param="chat_template_kwargs.tools")
    if not body.tools and body.tool_choice not in (None, "none"):
        raise refused("tool_choice needs tools", param="tool_choice")
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise refused("two tools have one name", param="tools")
    form = body.response_format
    demanded = body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
    if demanded and form is not None and form.type != "text":
        raise refused(
            "tool_choice demands a call and response_format an answer; give one",
            param="response_format",
        )


async def _whole(generation: Generation, job: Job, body: ChatBody) -> dict[str, Any]:
    """The answer as one object."""
    messages = [Message() for _ in range(job.n)]
    finish, logprobs = [""] * job.n, [[] for _ in range(job.n)]  # type: list[str], list[list[Any]]
    async for update in generation.updates():
        generation.keep_text(update)
        for delta in update.deltas:
            messages[update.choice].add(delta)
        if body.logprobs:
            logprobs[update.choice] += job.model.alternatives.content(update.tokens)
        finish[update.choice] = update.finish or ""
    choices = [
        {
            "index": choice,
            "message": _message(messages[choice]),
            "finish_reason": finish[choice],
            "logprobs": _logprobs(logprobs[choice]) if body.logprobs else None,
        }
        for choice in range(job.n)
    ]
    return {
        **_head(job, "chat.completion"),
        "choices": choices,
        "usage": generation.usage().json(),
    }


async def _events(generation: Generation, job: Job, body: ChatBody) -> AsyncGenerator[bytes, None]:
    """The answer as chunks: the role, the deltas, the end of each choice, the usage, [DONE]."""
    head = _head(job, "chat.completion.chunk")
    usage = {"usage": None} if body.include_usage else {}

    def chunk(*choices: dict[str, Any]) -> bytes:
        return event({**head, "choices": list(choices), **usage})

    for choice in range(job.n):
        yield chunk(_choice(choice, {"role": "assistant", "content": ""}))
    async for update in generation.updates():
        generation.keep_text(update)
        for data in _deltas(update, job.model.alternatives if body.logprobs else None):
            yield chunk(data)
        if update.finish is not None:
            if generation.ended:
                await generation.settle()
            yield chunk(_choice(update.choice, {}, update.finish))
    if body.include_usage:
        yield event({**head, "choices": [], "usage": generation.usage().json()})
    yield DONE


def _deltas(update: Update, alternatives: Alternatives | None) -> list[dict[str, Any]]:
    """Choices of the chunks of an update; all its tokens' probabilities are in the first one."""
    found = [_choice(update.choice, _delta(delta)) for delta in update.deltas]
    if alternatives is not None and update.tokens:
        found = found or [_choice(update.choice, {})]
        found[0]["logprobs"] = _logprobs(alternatives.content(update.tokens))
    return found


def _delta(delta: Delta) -> dict[str, Any]:
    match delta:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallBegin(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {
                "tool_calls": [
                    {"index": index, "id": call_id, "type": "function", "function": function}
                ]
            }
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning:
        found["reasoning_content"] = message.reasoning
    if message.calls:
        found["content"] = message.content or None
        found["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in message.calls
        ]
    return found


def _logprobs(content: list[Any]) -> dict[str, Any]:
    return {"content": content, "refusal": None}


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": kind,
        "created": int(time.time()),
        "model": job.model.name,
        "system_fingerprint": f"fp_{job.model.digest[:12]}" if job.model.digest else None,
    }
