"""Streams end well: whole characters, clients that leave, crawl or wait, an engine that dies."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.engine.requests import GeneratedToken
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.serve.api.answers.answer_parser import HERMES, AnswerParser
from lit_llm.serve.api.answers.deltas import Content, Message
from lit_llm.serve.api.answers.reader import AnswerReader
from lit_llm.serve.api.event_stream import MOST_UNREAD, EventStream, event
from tests.serve.running import Running, events
from tests.serve.test_chat_api import error_of, joined
from tests.serve.test_guard import used


def wait_until(condition: Any, seconds: float = 10) -> None:
    """Wait for another thread."""
    event_of_nobody = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        event_of_nobody.wait(0.01)
    raise AssertionError("it did not happen")


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é🙂北\u200d\n<"), max_size=30),
    stop=st.lists(st.text(st.sampled_from("ab é🙂"), min_size=1, max_size=4), max_size=3),
)
def test_pieces_are_whole_characters_and_add_up(
    tokenizer: Tokenizer, text: str, stop: list[str]
) -> None:
    """What is streamed is the text up to the stop text that is complete first."""
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    expected = text[: min(ends)[1]] if ends else text
    reader = AnswerReader(tokenizer, stop, AnswerParser(syntax=HERMES, tools=["a"]))
    message, pieces = Message(), []
    for token in tokenizer.encode(text):
        deltas = reader.read(GeneratedToken(token))
        pieces += [delta.text for delta in deltas if isinstance(delta, Content)]
        if reader.stopped:
            break
    deltas, finish = reader.finish("stop")
    pieces += [delta.text for delta in deltas if isinstance(delta, Content)]
    assert "".join(pieces) == expected
    assert not any("\ufffd" in piece or piece == "" for piece in pieces)
    assert finish == "stop" and not message.calls


def test_an_answer_that_ends_inside_a_character(server: Running) -> None:
    server.engine.script = lambda request: "a🙂"
    tokens = len(server.engine.tokenizer.encode("a🙂"))
    chunks = server.stream(max_tokens=tokens - 1)
    ((message, finish),) = joined(chunks)
    assert (message.content, finish) == ("a\ufffd", "length")


def test_line_ends_of_unicode_do_not_end_an_event(server: Running) -> None:
    server.engine.script = lambda request: "a\u2028b\x85c\u2029d\r\n\ne"
    answer = server.chat(stream=True)
    assert len(answer.text.splitlines()) == answer.text.count("\n")
    ((message, _),) = joined(events(answer.text))
    assert message.content == "a\u2028b\x85c\u2029d\r\n\ne"


@pytest.mark.parametrize("free", [0, 1, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_cancels_its_answer(
    server: Running, free: int, streamed: bool
) -> None:
    """Before and after the first token; its neighbour goes on, and what was used is counted."""
    engine = server.engine
    engine.pause.clear()
    engine.free = free
    body = {
        "model": "tiny", "stream": streamed, "messages": [{"role": "user", "content": "hello"}]
    }  # fmt: skip
    neighbour: list[Any] = []
    beside = threading.Thread(target=lambda: neighbour.append(server.chat()))
    beside.start()
    wait_until(lambda: engine.running and engine.running[0].computed == free)
    import httpx

    with httpx.Client(base_url=server.url, timeout=30) as leaving:
        if streamed:
            with leaving.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_raw())
                wait_until(lambda: len(engine.running) == 2)
        else:
            thread = threading.Thread(target=_post_and_leave, args=(server.url, body))
            thread.start()
            thread.join(20)
            wait_until(lambda: len(engine.running) == 2)
    gone = engine.running[1]
    assert gone.over.wait(10), "the engine was not told"
    assert gone.computed <= free + 1
    wait_until(lambda: used(server) == len(gone.request.prompt) + gone.computed)
    engine.pause.set()
    beside.join(10)
    assert neighbour[0].json()["choices"][0]["message"]["content"] == "hello there"


def _post_and_leave(url: str, body: dict[str, Any]) -> None:
    """Send a request and close the connection without waiting for the answer."""
    import socket

    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        connection.settimeout(0.3)
        try:
            connection.recv(1)
        except TimeoutError:
            return


def test_an_engine_that_dies_ends_every_stream(server: Running) -> None:
    server.engine.pause.clear()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(server.stream())),
        threading.Thread(target=lambda: found.append(server.chat())),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(server.engine.running) == 2)
    server.engine.is_alive = False
    server.service.fail()
    for thread in threads:
        thread.join(10)
    streams = [one for one in found if isinstance(one, list)]
    assert streams[0][-2]["error"]["code"] == "engine_failed" and streams[0][-1] == "[DONE]"
    error_of(next(one for one in found if not isinstance(one, list)), 503)


class Wire:
    """An ASGI client that reads when the test says so."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reads, self.leaves = asyncio.Event(), asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.reads.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def play(stream: EventStream, wire: Wire) -> None:
    await stream({"type": "http"}, wire.receive, wire.send)


def streaming(chunks: AsyncGenerator[bytes, None], heartbeat: float = 15) -> Any:
    ended: list[int] = []

    async def on_end() -> None:
        ended.append(1)

    return EventStream(chunks, {}, on_end, heartbeat), ended


def test_a_slow_reader_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """The generator is closed when 256 kB wait, and it never waits for the reader."""
    made: list[int] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                made.append(1)
                yield b"x" * 1000
        finally:
            made.append(-1)

    async def run() -> list[int]:
        stream, ended = streaming(endless())
        await asyncio.wait_for(play(stream, Wire()), 10)
        return ended

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) == [1]
    assert made[-1] == -1 and abs(sum(made[:-1]) - MOST_UNREAD / 1000) < 3
    assert "reads too slowly" in caplog.text


def test_a_stream_without_news_sends_comments() -> None:
    async def run() -> bytes:
        release = asyncio.Event()

        async def late() -> AsyncGenerator[bytes, None]:
            await release.wait()
            yield event({"a": 1})

        wire = Wire()
        wire.reads.set()
        stream, _ = streaming(late(), heartbeat=0.01)
        playing = asyncio.create_task(play(stream, wire))
        while wire.body.count(b": \n\n") < 3:
            await asyncio.sleep(0)
        release.set()
        await playing
        return wire.body

    assert asyncio.run(run()).endswith(b': \n\ndata: {"a":1}\n\n')


def test_a_stream_that_never_began_is_ended_too() -> None:
    async def run() -> list[int]:
        async def nothing() -> AsyncGenerator[bytes, None]:
            yield b""

        wire = Wire()
        wire.leaves.set()
        stream, ended = streaming(nothing())
        await play(stream, wire)
        return ended

    assert asyncio.run(run()) == [1]


def test_a_bug_inside_a_stream_is_one_event_and_the_end() -> None:
    async def run() -> bytes:
        async def broken() -> AsyncGenerator[bytes, None]:
            yield event({"a": 1})
            raise KeyError("a secret")

        wire = Wire()
        wire.reads.set()
        stream, _ = streaming(broken())
        await play(stream, wire)
        return wire.body

    found = events(asyncio.run(run()).decode())
    assert found[1]["error"]["type"] == "server_error" and found[2] == "[DONE]"
    assert "secret" not in json.dumps(found)
