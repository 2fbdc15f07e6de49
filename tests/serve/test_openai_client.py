"""The openai package as a client, whose types every chunk must satisfy exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.serve.running import Running
from tests.serve.test_chat_api import CALL, WEATHER

openai = pytest.importorskip("openai")
from openai.types import Completion  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

# vLLM, SGLang and DeepSeek's own API deliver thoughts under this name; OpenAI's has none.
OURS = {"reasoning_content"}


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def unknown_fields(value: Any) -> set[str]:
    """Names in a parsed answer that the package's types do not have."""
    found: set[str] = set()
    if isinstance(value, BaseModel):
        found |= set(value.__pydantic_extra__ or {}) - OURS
        for name in type(value).model_fields:
            found |= unknown_fields(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            found |= unknown_fields(item)
    return found


def strict(kind: type[BaseModel], data: dict[str, Any]) -> None:
    """Validate with exact types and without unknown fields."""
    parsed = kind.model_validate(data, strict=False)
    assert not unknown_fields(parsed), data


@pytest.mark.parametrize(
    "body",
    [
        {}, {"n": 3}, {"stream_options": {"include_usage": True}}, {"tools": [WEATHER]},
        {"logprobs": True, "top_logprobs": 3}, {"stop": ["e"]}, {"max_tokens": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_chunk_is_of_the_official_type(server: Running, body: dict[str, Any]) -> None:
    server.engine.script = lambda request: f"<think>well</think>yes {CALL}"
    chunks = server.stream(**body)
    for chunk in chunks[:-1]:
        strict(ChatCompletionChunk, chunk)
    body.pop("stream_options", None)
    strict(ChatCompletion, server.chat(**body).json())


def test_every_chunk_of_a_completion_too(server: Running) -> None:
    body = {"model": "tiny", "prompt": "a", "logprobs": 2}
    strict(Completion, server.http.post("/v1/completions", json=body).json())


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "be short"},
                                {"role": "user", "content": "hi"}]
    )  # fmt: skip
    assert answer.choices[0].message.content == "hello there"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.completions.create(model="tiny", prompt="a").choices[0].text == "hello there"


def test_the_stream_helper_with_tools(server: Running, client: Any) -> None:
    """And its answer goes back as a message, with the result of the tool."""
    server.engine.script = lambda request: CALL if len(server.engine.running) == 1 else "rain"
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    with client.chat.completions.stream(
        model="tiny", messages=messages, tools=[WEATHER],
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    call = answer.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "B\u00e9"}
    assert answer.usage is not None
    messages += [
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    second = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "rain"


class Person(BaseModel):
    name: str
    age: int


def test_parse_with_a_schema(server: Running, client: Any) -> None:
    server.engine.script = lambda request: '{"name": "Ann", "age": 7}'
    answer = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "who?"}], response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="Ann", age=7)
    assert '"age"' in (server.engine.running[0].request.grammar or "")


def test_errors_are_the_packages_own(server: Running, client: Any) -> None:
    def ask(**body: Any) -> Any:
        messages = [{"role": "user", "content": "hi"}]
        return client.chat.completions.create(**{"model": "tiny", "messages": messages, **body})

    for body, kind in (
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": 5}, openai.BadRequestError),
    ):
        with pytest.raises(kind) as caught:
            ask(**body)
        assert caught.value.body["code"] and caught.value.request_id
    server.engine.room = 0
    with pytest.raises(openai.RateLimitError):
        ask()
    server.engine.room = 10
    server.engine.fail_after = 1
    with pytest.raises(openai.InternalServerError):
        ask()
    with pytest.raises(openai.APIError, match="the server failed"):
        list(ask(stream=True))
    server.engine.fail_after = None
    server.gate.keys.create("team")
    with pytest.raises(openai.AuthenticationError):
        ask()
