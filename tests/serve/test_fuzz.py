"""Whatever is sent, the answer is one of ours: never 500, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.api import body
from lit_llm.serve.api.app import create_app
from lit_llm.serve.api.requests.fields import CHAT, COMPLETIONS, RESPONSES
from lit_llm.serve.api.service import ServedModel, Service
from tests.serve.running import Running
from tests.serve.scripted import ScriptedEngine
from tests.serve.test_chat_api import error_of


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer, qwen: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = Store(tmp_path_factory.mktemp("fuzz") / "serve.sqlite")
    engine = ScriptedEngine(tokenizer, lambda request: "ok")
    model = ServedModel("tiny", engine, tokenizer, qwen)
    return create_app(Service({"tiny": model}, Gate(store)))


def ask(app: Any, path: str, value: Any) -> httpx.Response:
    """POST inside this process."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post(path, json=value)

    return asyncio.run(run())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip
WORDS = st.sampled_from(["a", "", "hello", "<think>", "<|im_end|>", "\0", "é🙂", "\ud7ff"])
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "input_text"])},
                             optional={"text": WORDS | JSON})  # fmt: skip
CALL = st.fixed_dictionaries({
    "id": WORDS, "type": st.just("function"),
    "function": st.fixed_dictionaries({"name": WORDS, "arguments": st.sampled_from(
        ["{}", '{"a": 1}', "[", "", '{"a": "\\ud83d"}', "[" * 5000]) | JSON}),
})  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool", "robot"])
     | JSON},
    optional={
        "content": WORDS | st.lists(PART, max_size=2) | JSON, "name": WORDS,
        "tool_calls": st.lists(CALL, max_size=2) | JSON, "tool_call_id": WORDS,
        "reasoning_content": WORDS | JSON,
    },
)  # fmt: skip
TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", ""])}, optional={"parameters": JSON, "description": WORDS}
)})  # fmt: skip
LIKELY = {
    "model": st.sampled_from(["tiny", "other"]),
    "messages": st.lists(MESSAGE, max_size=4),
    "prompt": WORDS | st.lists(st.integers(-1, 500), max_size=4),
    "input": WORDS | st.lists(MESSAGE | JSON, max_size=3),
    "n": st.integers(0, 9),
    "max_tokens": st.integers(0, 10**12),
    "stop": WORDS | st.lists(WORDS, max_size=3),
    "stream": st.booleans(),
    "temperature": st.floats(-1, 3),
    "tools": st.lists(TOOL, max_size=3),
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | JSON,
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
        optional={"json_schema": st.fixed_dictionaries({"name": WORDS, "schema": JSON})},
    ),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "x", "99999"]), st.floats(-200, 200)),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "messages"]), JSON),
}


@st.composite
def bodies(draw: Any, fields: list[str]) -> dict[str, Any]:
    """Some of a route's fields, mostly of the right kind, sometimes of any."""
    names = draw(st.lists(st.sampled_from(fields), max_size=5, unique=True))
    return {
        name: draw(LIKELY[name] if name in LIKELY and draw(st.integers(0, 5)) else JSON)
        for name in {"model", *names}
    }


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(
        [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETIONS),
         ("/v1/responses", RESPONSES)]
    ).flatmap(lambda route: st.tuples(st.just(route[0]), bodies(list(route[1]))))
)  # fmt: skip
def test_any_body(app: Any, sent: tuple[str, dict[str, Any]]) -> None:
    path, value = sent
    essential = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
    value.setdefault(essential.get(path, "input"), "a")
    answer = ask(app, path, value)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error_of(answer, answer.status_code)


def test_the_description_has_the_bodies_and_the_form_of_errors(server: Running) -> None:
    found = server.http.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/ChatBody", "components": found["components"]}
    messages = [{"role": "user", "content": "a"}]
    jsonschema.validate({"model": "tiny", "messages": messages, "metadata": {}}, schema)
    for wrong in ({"model": "tiny"}, {"model": "tiny", "messages": messages, "n": 9}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    error = {"$ref": "#/components/schemas/Error", "components": found["components"]}
    jsonschema.validate(server.chat(n=9).json(), error)
    assert "HTTPValidationError" not in found["components"]["schemas"]


def test_a_body_that_does_not_arrive(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SLOWEST", 0.05)

    async def run() -> int:
        async def pieces() -> AsyncGenerator[bytes, None]:
            yield b"{"
            await asyncio.Event().wait()

        status: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        source = pieces()

        async def receive() -> Any:
            return {"type": "http.request", "body": await anext(source), "more_body": True}

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(b"host", b"localhost")], "scheme": "http", "server": ("localhost", 80),
        }  # fmt: skip
        await create_app(server.service)(scope, receive, send)
        return status[0]

    assert asyncio.run(run()) == 408


def test_metrics_name_routes_and_no_paths_of_clients(server: Running) -> None:
    server.chat()
    server.http.get("/v1/secret-path")
    text = server.http.get("/metrics").text
    assert 'lit_llm_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert "secret-path" not in text
    for name in ("prompt_tokens", "completion_tokens", "answers"):
        assert f"lit_llm_{name}_total" in text


def test_texts_are_kept_only_on_request(server: Running, tmp_path: Path) -> None:
    import sqlite3

    def texts() -> list[Any]:
        with sqlite3.connect(tmp_path / "serve.sqlite") as connection:
            return connection.execute("SELECT prompt_text, answer_text FROM requests").fetchall()

    server.chat()
    assert texts() == [(None, None)]
    server.service.store_texts = True
    server.chat()
    prompt, answer = texts()[1]
    assert "hello" in prompt and answer == "hello there"
