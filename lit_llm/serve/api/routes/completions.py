"""POST /v1/completions: continue texts, in OpenAI's older API."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lit_llm.models.engine.requests import GeneratedToken
from lit_llm.serve.api.answers.answer_parser import AnswerParser
from lit_llm.serve.api.answers.deltas import Content
from lit_llm.serve.api.answers.generation import Generation, Job
from lit_llm.serve.api.answers.reader import Alternatives, Update
from lit_llm.serve.api.context import key_of, service_of
from lit_llm.serve.api.errors import refused
from lit_llm.serve.api.event_stream import DONE, event
from lit_llm.serve.api.requests.fields import COMPLETIONS
from lit_llm.serve.api.requests.reading import read_request
from lit_llm.serve.api.requests.schema import CompletionBody
from lit_llm.serve.api.routes.answering import streamed, whole
from lit_llm.serve.api.service import ServedModel

MOST_ANSWERS = 128
"""Most answers to the prompts of one request."""
router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continue a text, whole or as a stream of events."""
    service, key = service_of(request), key_of(request)
    body, _, ignored = await read_request(request, CompletionBody, COMPLETIONS, service.unknown)
    ignored += body.without_effect
    model = service.model(body.model, key)
    job = await service.encode(lambda: completion_job(body, model))
    generation = Generation(service, job, key)
    await generation.begin()
    if body.stream:
        return await streamed(request, generation, _events(generation, job, body), ignored)
    return await whole(request, generation, _whole(generation, job, body), ignored)


def completion_job(body: CompletionBody, model: ServedModel) -> Job:
    """The job of a request.

    Raises:
        ApiError: 400.
    """
    body.check_stream_options()
    return Job(
        id=f"cmpl-{secrets.token_hex(12)}",
        route="/v1/completions",
        model=model,
        prompts=_prompts(body, model),
        limit=body.max_tokens,
        n=body.n,
        sampling=body.sampling(model.tokenizer.vocab_size),
        seed=body.chosen_seed(),
        stop=body.stops,
        stop_ids=[] if body.ignore_eos else model.tokenizer.stop_ids,
        top_logprobs=body.logprobs,
        grammar=None,
        parser=AnswerParser,
        user=body.user,
    )


def _prompts(body: CompletionBody, model: ServedModel) -> list[list[int]]:
    """The ids of each prompt."""
    prompts: Any = body.prompt
    if isinstance(prompts, str) or not prompts or isinstance(prompts[0], int):
        prompts = [prompts]
    if len(prompts) * body.n > MOST_ANSWERS:
        raise refused(
            f"{len(prompts)} prompts with n={body.n} are more than {MOST_ANSWERS} answers; "
            "send several requests",
            param="prompt",
        )
    return [_ids(prompt, model) for prompt in prompts]


def _ids(prompt: str | list[int], model: ServedModel) -> list[int]:
    if isinstance(prompt, str):
        ids = model.tokenizer.document_start + model.tokenizer.encode(prompt)
    else:
        ids = prompt
    size = model.tokenizer.vocab_size
    if wrong := next((i for i in ids if not 0 <= i < size), None):
        raise refused(f"prompt: there is no token {wrong}; the vocabulary has {size}", "prompt")
    if not ids:
        why = "" if isinstance(prompt, list) else ", and this model has no token that begins a text"
        raise refused(f"the prompt is empty{why}", "prompt")
    return ids


async def _whole(generation: Generation, job: Job, body: CompletionBody) -> dict[str, Any]:
    texts, finish = [""] * job.answers, [""] * job.answers
    tokens: list[list[GeneratedToken]] = [[] for _ in range(job.answers)]
    async for update in generation.updates():
        generation.keep_text(update)
        texts[update.choice] += _text(update)
        tokens[update.choice] += update.tokens
        finish[update.choice] = update.finish or ""
    choices = [
        {
            "index": choice,
            "text": texts[choice],
            "finish_reason": finish[choice],
            "logprobs": _logprobs(job.model.alternatives, tokens[choice], 0)
            if body.logprobs is not None
            else None,
        }
        for choice in range(job.answers)
    ]
    return {**_head(job), "choices": choices, "usage": generation.usage().json()}


async def _events(
    generation: Generation, job: Job, body: CompletionBody
) -> AsyncGenerator[bytes, None]:
    head = _head(job)
    usage = {"usage": None} if body.include_usage else {}
    written = [0] * job.answers
    async for update in generation.updates():
        generation.keep_text(update)
        if generation.ended:
            await generation.settle()
        choice: dict[str, Any] = {
            "index": update.choice,
            "text": _text(update),
            "finish_reason": update.finish,
            "logprobs": None,
        }
        if body.logprobs is not None and update.tokens:
            at = written[update.choice]
            choice["logprobs"] = _logprobs(job.model.alternatives, update.tokens, at)
            written[update.choice] += sum(map(len, choice["logprobs"]["tokens"]))
        if choice["text"] or choice["logprobs"] or update.finish:
            yield event({**head, "choices": [choice], **usage})
    if body.include_usage:
        yield event({**head, "choices": [], "usage": generation.usage().json()})
    yield DONE


def _text(update: Update) -> str:
    return "".join(delta.text for delta in update.deltas if isinstance(delta, Content))


def _logprobs(
    alternatives: Alternatives, tokens: list[GeneratedToken], at: int
) -> dict[str, list[Any]]:
    """Log-probabilities in the older API's form; ``at`` is the offset of the first token."""
    texts = [alternatives.text(token.id) for token in tokens]
    offsets = [at + sum(map(len, texts[:place])) for place in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {alternatives.text(other): logprob for other, logprob in token.top_logprobs}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def _head(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": job.model.name,
        "system_fingerprint": f"fp_{job.model.digest[:12]}" if job.model.digest else None,
    }
