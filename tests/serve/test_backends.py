"""Another server behind ours: the same rules, keys, limits and records, and its mistakes mended."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.api.backends.backend import Backend
from lit_llm.serve.api.backends.mended_stream import MendedStream
from lit_llm.serve.api.errors import ApiError
from lit_llm.serve.api.service import Service
from tests.serve.running import Running, events, serving
from tests.serve.test_api_streams import wait_until
from tests.serve.test_chat_api import CALL, WEATHER, error_of, joined
from tests.serve.test_guard import limited, used


@pytest.fixture
def front(server: Running, tmp_path: Path) -> Iterator[Running]:
    """A server of ours before another one of ours, which has the scripted engine."""
    store = Store(tmp_path / "front.sqlite")
    backend = Backend("tiny", f"{server.url}/v1")
    service = Service({}, Gate(store), backends={"tiny": backend})
    with serving(service, server.engine) as running:
        yield running
    store.close()


def test_whole_and_streamed(front: Running) -> None:
    whole = front.chat(n=2).json()
    assert [c["message"]["content"] for c in whole["choices"]] == ["hello there"] * 2
    chunks = front.stream(n=2, stream_options={"include_usage": True})
    assert [(m.content, f) for m, f in joined(chunks)] == [("hello there", "stop")] * 2
    assert chunks[-2]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert not any("usage" in chunk for chunk in front.stream()[:-1])
    prompt, answer = whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]
    assert used(front) == 3 * prompt + 2 * answer + answer // 2
    assert [model["id"] for model in front.http.get("/v1/models").json()["data"]] == ["tiny"]
    assert front.http.get("/v1/models/tiny").status_code == 200


def test_calls(front: Running) -> None:
    front.engine.script = lambda request: f"I look.{CALL}{CALL}"
    ((message, finish),) = joined(front.stream(tools=[WEATHER]))
    assert finish == "tool_calls" and len(message.calls) == 2 and message.content == "I look."
    choice = front.chat(tools=[WEATHER]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"


def test_our_limits_hold(front: Running) -> None:
    limited(front, tokens_per_minute=200)
    assert error_of(front.chat())["code"] == "request_beyond_limit"
    answers = [front.chat(max_tokens=20)]
    while answers[-1].status_code == 200:
        answers.append(front.chat(max_tokens=20))
    error_of(answers[-1], 429)
    assert 24 <= used(front) <= 200
    front.gate.keys.revoke("team")
    error_of(front.chat(), 401)


def test_a_client_that_leaves_cancels_there_too(front: Running) -> None:
    front.engine.pause.clear()
    front.engine.free = 1
    import httpx

    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "a"}]}
    with (
        httpx.Client(base_url=front.url) as leaving,
        leaving.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        next(answer.iter_raw())
        wait_until(lambda: front.engine.running)
    assert front.engine.running[0].over.wait(5)
    wait_until(lambda: used(front) > 0)


def test_mistakes_and_failures_are_told(front: Running) -> None:
    assert error_of(front.chat(messages=[{"role": "user", "content": "a b " * 900}]))["code"] == (
        "context_length_exceeded"
    )
    front.engine.fail_after = 1
    error_of(front.chat(), 500)
    chunks = front.stream()
    assert "secret" not in json.dumps(chunks)
    assert chunks[-2]["error"]["type"] == "server_error" and chunks[-1] == "[DONE]"
    front.engine.room = 0
    error_of(front.chat(), 429)
    body = {"model": "tiny", "prompt": "a"}
    assert error_of(front.http.post("/v1/completions", json=body))["code"] == "unsupported_model"


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these answers in turn, and what it was asked."""
    asked: list[dict[str, Any]] = []
    waiting = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            asked.append(
                {**json.loads(self.rfile.read(size)), "key": self.headers["authorization"]}
            )
            status, body = waiting.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_before_the_first_byte_a_request_is_repeated(server: Running) -> None:
    good = sse(choice({"content": "hi"}, "stop"), {"choices": [], "usage": {
        "prompt_tokens": 3, "completion_tokens": 1}})  # fmt: skip
    with answering((503, b""), (502, b""), (200, good)) as (url, asked):
        server.service.backends["other"] = Backend("other", url, key="theirs")
        ((message, finish),) = joined(server.stream(model="other", store=True))
        assert (message.content, finish) == ("hi", "stop")
        assert [one["key"] for one in asked] == ["Bearer theirs"] * 3
        assert asked[0]["stream_options"] == {"include_usage": True} and "store" not in asked[0]
    with answering((503, b""), (503, b""), (503, b"")) as (url, asked):
        server.service.backends["other"] = Backend("other", url)
        assert error_of(server.chat(model="other"), 503)["code"] == "backend_unavailable"
    assert used(server) == 4 and len(server.gate.records.usage()) == 1


@pytest.mark.parametrize(
    "body",
    [
        sse(choice({"content": "hi"})),  # no end
        sse(choice({"content": "hi"}), {"error": {"message": "a secret"}}),
        b"data: {broken\n\n",
        b"",
    ],
)
def test_after_the_first_byte_it_ends_with_an_error(server: Running, body: bytes) -> None:
    with answering((200, body)) as (url, asked):
        server.service.backends["other"] = Backend("other", url)
        chunks = server.stream(model="other")
        assert "error" in chunks[-2] and chunks[-1] == "[DONE]" and len(asked) == 1
        assert "secret" not in json.dumps(chunks)


def test_refusals_of_the_other_server(server: Running) -> None:
    said = json.dumps({"error": {"message": "too hot", "param": "temperature", "code": "x"}})
    answers = ((422, said.encode()), (401, b"your key is bad"), (400, b"no json"), (200, b"{}"))
    with answering(*answers) as (url, _):
        server.service.backends["other"] = Backend("other", url)
        assert error_of(server.chat(model="other"))["param"] == "temperature"
        assert "key" not in error_of(server.chat(model="other"), 500)["message"]
        error_of(server.chat(model="other"), 400)
        error_of(server.chat(model="other"), 500)


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": 3}, {"prompt_tokens": 3, "completion_tokens": None}, "3"]
)
def test_a_usage_without_numbers(server: Running, usage: Any) -> None:
    """What the server's answer took is estimated, and the reservation is given back."""
    limited(server, tokens_per_minute=500)
    message = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    whole = json.dumps({"choices": [message], "usage": usage}).encode()
    streamed = sse(choice({"content": "hi"}, "stop"), {"choices": [], "usage": usage})
    with answering((200, whole), (200, streamed)) as (url, _):
        server.service.backends["other"] = Backend("other", url)
        assert server.chat(model="other", max_tokens=9).status_code == 200
        ((said, finish),) = joined(server.stream(model="other", max_tokens=9))
        assert (said.content, finish) == ("hi", "stop")
    assert used(server) > 0
    assert len(server.gate.records.usage()) == 1


def test_a_mended_stream() -> None:
    """What servers get wrong: no role, a second role, calls without index, id or type, "stop" after
    a call, two ends, usage in every chunk."""
    mended = MendedStream({"id": "a"}, 1)
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    call = {"function": {"name": "f", "arguments": None}}
    given = [
        choice({"content": "x"}), choice({"role": "assistant", "content": "y"}),
        choice({"tool_calls": [call]}), choice({"tool_calls": [{"function": {"arguments": "{}"}}]}),
        choice({}, "stop"), choice({"content": "late"}, "stop"),
    ]  # fmt: skip
    found = [out for one in given for out in mended.push({**one, "usage": usage})]
    found += list(mended.finish())
    ((message, finish),) = joined(
        [{**chunk, "object": "chat.completion.chunk"} for chunk in found] + ["[DONE]"]
    )
    assert (message.content, finish) == ("xy", "tool_calls")
    assert message.calls[0]["name"] == "f" and message.calls[0]["arguments"] == "{}"
    assert mended.usage == usage and not any("usage" in chunk for chunk in found)
    with pytest.raises(ApiError):
        list(MendedStream({}, 1).push([]))


def test_our_own_stream_needs_no_mending(server: Running) -> None:
    server.engine.script = lambda request: f"<think>a</think>b{CALL}"
    chunks = events(server.chat(stream=True, tools=[WEATHER]).text)[:-1]
    mended = MendedStream({key: chunks[0][key] for key in chunks[0] if key != "choices"}, 1)
    found = [out for chunk in chunks for out in mended.push(chunk)] + list(mended.finish())
    assert found == chunks
