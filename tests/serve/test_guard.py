"""Who is let in: keys on every route, their scopes and limits, Host and Origin."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.routing import Route

from lit_llm.people.limits import Limits
from lit_llm.serve.api.app import create_app
from lit_llm.serve.api.guard import ADMIN, OPEN
from tests.serve.running import Running, events, serving
from tests.serve.test_chat_api import error_of

ROUTES = {
    ("GET", "/v1/models"), ("GET", "/v1/models/{name:path}"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"), ("POST", "/v1/responses"), ("POST", "/tokenize"),
    ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/metrics"),
    ("GET", "/openapi.json"),
}  # fmt: skip


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def routes(server: Running) -> set[tuple[str, str]]:
    """Method and path of every route of the application."""
    found: set[tuple[str, str]] = set()

    def walk(router: Any, prefix: str = "") -> None:
        for route in router.routes:
            if getattr(route, "methods", None):
                methods = set(route.methods) - {"HEAD"}
                found.update((method, prefix + route.path) for method in methods)
            elif hasattr(route, "original_router"):  # FastAPI's included router
                walk(route.original_router, prefix)

    walk(create_app(server.service))
    assert Route
    return found


def test_every_route_wants_a_key(server: Running) -> None:
    """The list is of all routes, so that a new one cannot be forgotten."""
    found = routes(server)
    assert found == ROUTES
    _, secret = server.gate.keys.create("team", scopes=["infer", "admin"])
    for method, path in sorted(found):
        path = path.replace("{name:path}", "tiny")
        for headers in ({}, bearer("sk-lit-wrong"), {"x-api-key": "\u00e9".encode().hex()}):
            answer = server.http.request(method, path, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200
            else:
                assert error_of(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for headers in (bearer(secret), {"x-api-key": secret}):
            answer = server.http.request(method, path, headers=headers, json={})
            assert answer.status_code in (200, 400), path
    error_of(server.http.get("/nothing"), 401)


def test_scopes(server: Running) -> None:
    _, infer = server.gate.keys.create("infer")
    _, admin = server.gate.keys.create("admin", scopes=["admin"])
    for path in ADMIN:
        assert error_of(server.http.get(path, headers=bearer(infer)), 403)["code"] == "wrong_scope"
        assert server.http.get(path, headers=bearer(admin)).status_code == 200
    error_of(server.http.get("/v1/models", headers=bearer(admin)), 403)
    assert server.http.get("/health/ready", headers=bearer(admin)).status_code == 200


def test_models_of_a_key(server: Running) -> None:
    _, secret = server.gate.keys.create("team", models=["other"])
    server.http.headers.update(bearer(secret))
    assert error_of(server.chat(), 403)["code"] == "model_not_allowed"
    assert server.http.get("/v1/models").json()["data"] == []


def test_a_key_works_at_once_and_no_longer_when_revoked(server: Running) -> None:
    assert server.chat().status_code == 200  # nobody needs a key before there is one
    _, secret = server.gate.keys.create("team")
    error_of(server.chat(), 401)
    server.http.headers.update(bearer(secret))
    assert server.chat().status_code == 200
    server.gate.keys.revoke("team")
    error_of(server.chat(), 401)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Host": "127.0.0.1.evil.example"}, "wrong_host"),
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, "wrong_origin"),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, None),
        ({"Host": "[::1]:8000"}, None),
    ],
)
def test_pages_of_others_reach_no_local_model(
    server: Running, headers: dict[str, str], code: str | None
) -> None:
    answer = server.http.get("/v1/models", headers=headers)
    if code is None:
        assert answer.status_code == 200
    else:
        assert error_of(answer, 403)["code"] == code
    if code == "wrong_host":
        server.service.hosts = [headers["Host"]]
        assert server.http.get("/v1/models", headers=headers).status_code == 200
    server.service.loopback = False
    assert server.http.get("/v1/models", headers=headers).status_code == 200


def test_there_is_no_cors(server: Running) -> None:
    answer = server.http.options(
        "/v1/chat/completions", headers={"Access-Control-Request-Method": "POST"}
    )
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_request_ids(server: Running) -> None:
    assert (
        server.http.get("/nothing", headers={"x-request-id": "mine-1"}).headers["x-request-id"]
        == "mine-1"
    )
    assert (
        server.http.get("/nothing", headers={"x-request-id": "a b"})
        .headers["x-request-id"]
        .startswith("req-")
    )


def limited(server: Running, **limits: int) -> None:
    _, secret = server.gate.keys.create("team", limits=Limits(**limits))
    server.http.headers.update(bearer(secret))


def used(server: Running) -> int:
    """Prompt and completion tokens that the store has."""
    return sum(row["prompt_tokens"] + row["completion_tokens"]
               for row in server.gate.records.usage())  # fmt: skip


def test_tokens_a_minute(server: Running) -> None:
    limited(server, tokens_per_minute=100)
    first = server.chat(max_tokens=20)
    spent = first.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    # While the answer is written, its reservation counts.
    left = 100 - first.json()["usage"]["prompt_tokens"] - 20
    assert first.headers["x-ratelimit-remaining-tokens"] == str(left)
    assert 0 < float(first.headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 60
    answers = [first]
    while answers[-1].status_code == 200:
        answers.append(server.chat(max_tokens=20))
    error = error_of(answers[-1], 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert used(server) == spent * (len(answers) - 1) <= 100


def test_a_request_that_can_never_pass_is_no_429(server: Running) -> None:
    limited(server, tokens_per_minute=100)
    assert error_of(server.chat(max_tokens=100))["code"] == "request_beyond_limit"
    assert server.chat().status_code == 200  # without a limit of its own it gets what may pass
    assert server.engine.running[0].request.max_new_tokens < 100


def test_a_full_queue_gives_the_reservation_back(server: Running) -> None:
    limited(server, tokens_per_minute=60)
    server.engine.room = 0
    for _ in range(3):
        assert error_of(server.chat(max_tokens=30), 429)["code"] == "queue_full"
    server.engine.room = 1
    assert server.chat(max_tokens=30).status_code == 200


def test_choices_count_each(server: Running) -> None:
    limited(server, tokens_per_minute=100)
    assert error_of(server.chat(max_tokens=20, n=5))["code"] == "request_beyond_limit"
    answer = server.chat(max_tokens=20, n=3).json()
    computed = sum(running.computed for running in server.engine.running)
    assert answer["usage"]["completion_tokens"] == computed == 3 * server.engine.running[0].computed


@pytest.mark.parametrize("streamed", [False, True])
def test_ten_clients_at_once_stay_under_the_limit(server: Running, streamed: bool) -> None:
    """Reserved tokens count while the answers are written, in streams too."""
    limited(server, tokens_per_minute=200)
    server.engine.pause.clear()
    server.engine.free = 1
    statuses: list[int] = []

    def ask(_: int) -> None:
        with server.http.stream(
            "POST",
            "/v1/chat/completions",
            json={
                "model": "tiny",
                "max_tokens": 30,
                "stream": streamed,
                "messages": [{"role": "user", "content": "hello"}],
            },
        ) as answer:
            if answer.status_code == 429:
                refusals.release()
            statuses.append(answer.status_code)
            answer.read()

    refusals = threading.Semaphore(0)
    with ThreadPoolExecutor(10) as clients:
        asked = [clients.submit(ask, number) for number in range(10)]
        prompt = 19 if not server.engine.running else len(server.engine.running[0].request.prompt)
        fit = 200 // (prompt + 30)
        for _ in range(10 - fit):
            assert refusals.acquire(timeout=20)
        assert len(server.engine.running) == fit
        server.engine.pause.set()
        for one in asked:
            one.result(20)
    assert sorted(statuses) == [200] * fit + [429] * (10 - fit)
    assert used(server) <= 200


def test_what_was_told_is_what_is_stored(server: Running) -> None:
    told = 0
    for number in range(4):
        body: dict[str, Any] = {"n": 1 + number % 2, "stream": number % 2 == 0}
        if body["stream"]:
            body["stream_options"] = {"include_usage": True}
        answer = server.chat(**body)
        usage = events(answer.text)[-2]["usage"] if body["stream"] else answer.json()["usage"]
        told += usage["total_tokens"]
        assert used(server) == told  # at the moment at which the client knows
    assert server.gate.records.usage()[0]["requests"] == 4


def test_no_secret_and_no_text_in_logs_metrics_and_errors(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = server.gate.keys.create("team", scopes=["infer", "admin"])
    server.http.headers.update(bearer(secret))
    planted = "my planted secret"
    with caplog.at_level(logging.DEBUG):
        texts = [
            server.chat(messages=[{"role": "user", "content": planted}]).text,
            server.chat(messages=[{"role": "user", "content": planted}], n=99).text,
            server.chat(messages=[{"role": "robot", "content": planted}]).text,
            server.http.get("/metrics").text,
            server.http.get("/openapi.json").text,
        ]
        server.engine.submit = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        failed = server.chat(messages=[{"role": "user", "content": planted}])
    assert "Traceback" not in error_of(failed, 500)["message"]
    everything = "".join([*texts, failed.text, caplog.text])
    assert planted not in everything and secret not in everything
    assert "lit_llm_prompt_tokens_total" in texts[3]


def test_under_a_path_of_a_proxy(server: Running) -> None:
    """The proxy takes the path off; the description has it."""
    with serving(server.service, server.engine, "/llm") as under:
        assert under.http.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert under.chat().status_code == 200
        server.gate.keys.create("team")
        error_of(under.http.get("/v1/models"), 401)
        error_of(under.http.get("/metrics"), 401)
        assert under.http.get("/health/live").status_code == 200


def test_health(server: Running) -> None:
    assert server.http.get("/health/ready").status_code == 200
    server.engine.is_alive = False
    assert server.http.get("/health/live").status_code == 200
    error_of(server.http.get("/health/ready"), 503)
    error_of(server.chat(), 503)
