"""Many clients: they vanish, flood, and press against limits; nothing is lost or left over."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.limits import Limits
from lit_llm.people.store.database import Store
from lit_llm.serve.api.answers.generation import Generation
from lit_llm.serve.api.service import ServedModel, Service
from tests.people.databases import postgres
from tests.serve.running import Running, serving
from tests.serve.scripted import ScriptedEngine
from tests.serve.test_api_streams import wait_until

pytestmark = pytest.mark.slow
Client = Callable[[httpx.AsyncClient, int], Awaitable[Any]]


def crowd(url: str, count: int, client: Client, headers: dict[str, str] | None = None) -> list[Any]:
    """What ``count`` clients at once return."""

    async def run() -> list[Any]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=url, timeout=120, limits=limits, headers=headers
        ) as http:
            return await asyncio.gather(*(client(http, number) for number in range(count)))

    return asyncio.run(run())


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **more}


async def vanish(http: httpx.AsyncClient, number: int) -> str:
    """Ask, and close the connection at a random moment: before or after the first token."""
    rng = random.Random(number)
    streamed = number % 2 == 0
    try:
        async with asyncio.timeout(rng.uniform(0.01, 1.5)):
            if not streamed:
                await http.post("/v1/chat/completions", json=body())
                return "whole"
            request = http.stream("POST", "/v1/chat/completions", json=body(stream=True))
            async with request as answer:
                async for _ in answer.aiter_bytes():
                    if rng.random() < 0.3:
                        return "left"
            return "whole"
    except TimeoutError:
        return "left"


def left_over() -> list[Generation]:
    """Generations that something still refers to."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, Generation)]


def test_two_hundred_clients_vanish(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.script = lambda request: "a b c d e f g h i j " * 4
    server.engine.pause.clear()
    server.engine.free = 20
    found = Counter(crowd(server.url, 200, vanish))
    assert found["left"] > 100
    wait_until(lambda: all(one.over.is_set() for one in server.engine.running), 30)
    # At most the token that was in work when the client left.
    most = server.engine.free + 1
    assert all(running.computed <= most for running in server.engine.running)
    wait_until(lambda: not server.service.waiting, 30)
    server.engine.pause.set()
    assert server.chat().status_code == 200
    rows = server.gate.records.usage()
    assert rows[0]["requests"] == len(server.engine.running)
    computed = sum(one.computed for one in server.engine.running)
    assert rows[0]["completion_tokens"] <= computed
    server.engine.running.clear()  # which has their callbacks
    assert "Traceback" not in caplog.text
    wait_until(lambda: not left_over(), 0.1)
    assert "lit_llm_running 0.0" in server.http.get("/metrics").text


async def status(http: httpx.AsyncClient, number: int) -> int:
    answer = await http.post("/v1/chat/completions", json=body(stream=number % 2 == 0))
    return answer.status_code


def test_five_hundred_at_a_full_queue(server: Running) -> None:
    """Those inside are answered, the others are told at once."""
    server.engine.room = 8
    found = Counter(crowd(server.url, 500, status))
    assert set(found) == {200, 429} and found[200] >= 8
    assert sum(found.values()) == 500
    assert server.chat().status_code == 200


def test_fifty_clients_and_two_servers_on_one_postgresql(
    tokenizer: Tokenizer, qwen: ChatFormat
) -> None:
    """Streams, whole answers and clients that leave: never more than the limit, and 90% of it."""
    limit = 1000
    with postgres() as url:
        stores = [Store(url), Store(url)]
        gates = [Gate(store) for store in stores]
        key, secret = gates[0].keys.create("team", limits=Limits(tokens_per_minute=limit))
        engines = [ScriptedEngine(tokenizer, lambda request: "hello there") for _ in stores]
        services = [
            Service({"tiny": ServedModel("tiny", engine, tokenizer, qwen)}, gate)
            for engine, gate in zip(engines, gates, strict=True)
        ]
        with serving(services[0], engines[0]) as one, serving(services[1], engines[1]) as two:
            urls = [one.url, two.url]

            async def press(http: httpx.AsyncClient, number: int) -> int:
                """Ask until the limit is reached three times."""
                refused = admitted = 0
                while refused < 3:
                    given = body(max_tokens=9, stream=number % 3 > 0)
                    place = f"{urls[(number + admitted) % 2]}/v1/chat/completions"
                    async with http.stream("POST", place, json=given) as answer:
                        refused += answer.status_code == 429
                        admitted += answer.status_code == 200
                        if number % 3 < 2:
                            await answer.aread()
                return admitted

            admitted = sum(crowd(one.url, 50, press, {"Authorization": f"Bearer {secret}"}))
            requests = [running for engine in engines for running in engine.running]
            wait_until(lambda: all(r.over.is_set() for r in requests), 30)
            wait_until(lambda: not any(service.waiting for service in services), 30)
            standing = asyncio.run(gates[0].standing(key))
            assert len(requests) >= admitted > 0
            used = sum(tokens for _, tokens in standing.window)
            # The whole test is shorter than a minute, so that nothing has left the window.
            assert len(standing.window) == len(requests)
            assert 0.9 * limit <= used <= limit
            rows = gates[0].records.usage()
            assert rows[0]["prompt_tokens"] + rows[0]["completion_tokens"] == used
        for store in stores:
            store.close()
