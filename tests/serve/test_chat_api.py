"""POST /v1/chat/completions: whole answers and streams by OpenAI's rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lit_llm.models.engine.requests import GenerationRequest
from lit_llm.serve.api.answers.deltas import Message
from tests.serve.running import Running

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "B\\u00e9"}}\n</tool_call>'


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which has exactly OpenAI's four fields."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def joined(chunks: list[Any]) -> list[tuple[Message, str]]:
    """(message, finish reason) of each choice of a stream, whose form is checked on the way."""
    assert chunks[-1] == "[DONE]" and "[DONE]" not in chunks[:-1]
    found: dict[int, Message] = {}
    finish: dict[int, str] = {}
    for chunk in chunks[:-1]:
        assert chunk["object"] == "chat.completion.chunk" and chunk["id"] == chunks[0]["id"]
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice["delta"]
            assert index not in finish, "a choice goes on after its end"
            if index not in found:
                assert delta == {"role": "assistant", "content": ""}
                found[index] = Message()
                continue
            assert "role" not in delta
            message = found[index]
            message.content += delta.get("content", "")
            message.reasoning += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["type"] == "function"
                    assert call["index"] == len(message.calls)
                    name = call["function"]["name"]
                    message.calls.append({"id": call["id"], "name": name, "arguments": ""})
                message.calls[call["index"]]["arguments"] += call["function"]["arguments"]
            if choice["finish_reason"] is not None:
                assert delta == {}
                finish[index] = choice["finish_reason"]
    assert found.keys() == finish.keys()
    return [(found[index], finish[index]) for index in sorted(found)]


def test_a_whole_answer(server: Running) -> None:
    answer = server.chat(seed=3, temperature=0.5, top_p=0.9)
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "hello there", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    usage = body["usage"]
    assert usage["completion_tokens"] == server.engine.running[0].computed
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    request = server.engine.running[0].request
    assert (request.seed, request.sampling.temperature, request.sampling.top_p) == (3, 0.5, 0.9)
    assert usage["prompt_tokens"] == len(request.prompt)


def test_the_prompt_is_that_of_the_training(server: Running) -> None:
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    server.chat(messages=messages)
    chat = server.service.models["tiny"].chat
    assert chat is not None
    request = server.engine.running[0].request
    assert request.prompt == chat.prompt_ids(messages)
    assert list(request.stop_ids) == chat.stop_ids


def test_a_stream_adds_up_to_the_whole_answer(server: Running) -> None:
    chunks = server.stream(n=2)
    assert [m.content for m, _ in joined(chunks)] == ["hello there"] * 2
    assert [finish for _, finish in joined(chunks)] == ["stop", "stop"]
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert len({choice["index"] for chunk in chunks[:-1] for choice in chunk["choices"]}) == 2


def test_usage_comes_once_if_it_is_asked_for(server: Running) -> None:
    chunks = server.stream(stream_options={"include_usage": True}, n=2)
    assert all(chunk["usage"] is None for chunk in chunks[:-2])
    assert chunks[-2]["choices"] == []
    computed = sum(running.computed for running in server.engine.running)
    assert chunks[-2]["usage"]["completion_tokens"] == computed
    assert error_of(server.chat(stream_options={"include_usage": True}))["param"] == (
        "stream_options"
    )


def test_headers_of_a_stream(server: Running) -> None:
    answer = server.chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"
    assert re.fullmatch(r"req-\w{24}", answer.headers["x-request-id"])


def test_limits_of_an_answer(server: Running) -> None:
    size = server.engine.max_seq_len
    server.chat()
    server.chat(max_tokens=10**6)
    server.chat(max_completion_tokens=2)
    whole, capped, two = (running.request for running in server.engine.running)
    assert whole.max_new_tokens == capped.max_new_tokens == size - len(whole.prompt)
    assert two.max_new_tokens == 2
    assert server.chat(max_tokens=2).json()["choices"][0]["finish_reason"] == "length"
    assert error_of(server.chat(max_tokens=2, max_completion_tokens=3))["param"] == "max_tokens"


def test_a_prompt_beyond_the_context_names_both_numbers(server: Running) -> None:
    error = error_of(server.chat(messages=[{"role": "user", "content": "a b c d " * 600}]))
    assert error["code"] == "context_length_exceeded"
    assert re.search(r"prompt has [\d,]+ tokens", error["message"])
    assert f"{server.engine.max_seq_len:,}" in error["message"]
    assert not server.engine.running


def test_stop_texts_across_tokens(server: Running) -> None:
    for streamed in (False, True):
        answer = server.chat(stop=["lo th"], stream=streamed)
        if streamed:
            ((message, finish),) = joined([*map(_data, answer.text.strip().split("\n\n"))])
            content = message.content
        else:
            choice = answer.json()["choices"][0]
            content, finish = choice["message"]["content"], choice["finish_reason"]
        assert (content, finish) == ("hel", "stop")


def _data(block: str) -> Any:
    text = block.removeprefix("data: ")
    return text if text == "[DONE]" else json.loads(text)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call(server: Running, streamed: bool) -> None:
    server.engine.script = lambda request: f"I look.\n{CALL}\n{CALL}"
    if streamed:
        ((message, finish),) = joined(server.stream(tools=[WEATHER]))
        assert message.content == "I look."
        calls = message.calls
    else:
        choice = server.chat(tools=[WEATHER]).json()["choices"][0]
        finish = choice["finish_reason"]
        assert choice["message"]["content"] == "I look."
        calls = [{"id": call["id"], **call["function"]} for call in choice["message"]["tool_calls"]]
    assert finish == "tool_calls"
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("weather", {"city": "B\u00e9"})
    ] * 2
    assert len({call["id"] for call in calls}) == 2
    prompt = server.engine.running[0].request.prompt
    assert "Functions:" in server.engine.tokenizer.decode(prompt)


def test_without_tools_a_call_is_text(server: Running) -> None:
    server.engine.script = lambda request: CALL
    for given in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = server.chat(**given).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


def test_a_call_that_the_limit_cuts_off_is_not_delivered(server: Running) -> None:
    server.engine.script = lambda request: CALL
    tokens = len(server.engine.tokenizer.encode(CALL))
    choice = server.chat(tools=[WEATHER], max_tokens=tokens - 25).json()["choices"][0]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_demanded_call_is_made_by_a_grammar(server: Running, choice: Any) -> None:
    server.engine.script = lambda request: '{"name": "weather", "arguments": {}}'
    found = server.chat(tools=[WEATHER], tool_choice=choice).json()["choices"][0]
    assert found["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert found["finish_reason"] == "tool_calls"
    grammar = server.engine.running[0].request.grammar
    assert grammar is not None and '"const":"weather"' in grammar
    absent = {"type": "function", "function": {"name": "absent"}}
    assert error_of(server.chat(tools=[WEATHER], tool_choice=absent))["param"] == "tool_choice"


def test_a_schema_becomes_a_grammar(server: Running) -> None:
    def form(schema: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    server.chat(response_format=form({"type": "object", "properties": {"a": {"const": 7}}}))
    server.chat(response_format={"type": "json_object"})
    server.chat(response_format={"type": "text"})
    grammars = [running.request.grammar or "" for running in server.engine.running]
    assert '"const":7' in grammars[0] and '"type":"object"' in grammars[1] and not grammars[2]
    refusal = error_of(server.chat(response_format=form({"items": {"uniqueItems": True}})))
    assert refusal["code"] == "unsupported_schema" and "#/items/uniqueItems" in refusal["message"]
    error_of(server.chat(response_format={"type": "json_schema"}))
    large = form({"enum": ["a" * 1000] * 300})
    assert "256" in error_of(server.chat(response_format=large))["message"].replace(
        "262,144", "256"
    )


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_an_answer_by_a_schema_or_a_call(server: Running, kind: str) -> None:
    """Agents send both: the model calls tools, and its last answer follows the schema."""
    llguidance = pytest.importorskip("llguidance")
    schema = {
        "type": "object", "properties": {"name": {"$ref": "#/$defs/who"}}, "required": ["name"],
        "additionalProperties": False, "$defs": {"who": {"enum": ["ann", "eve"]}},
    }  # fmt: skip
    form: dict[str, Any] = {"type": kind}
    if kind == "json_schema":
        form["json_schema"] = {"name": "a", "schema": schema}
    # Its parameters cannot be enforced, and no call of it is demanded.
    other = {"type": "function", "function": {"name": "other", "parameters": {
        "type": "object", "properties": {"a": {"uniqueItems": True}}}}}  # fmt: skip
    answers = ['{"name":"ann"}', '{"name":"eve"}', '{"name":"weather","arguments":{}}',
               '{"name":"other","arguments":{"a":[1]}}']  # fmt: skip
    for place, text in enumerate(answers):
        server.engine.script = lambda request, text=text: text
        given = {"tools": [WEATHER, other], "response_format": form}
        ((streamed, finish),) = joined(server.stream(**given))
        message = server.chat(**given).json()["choices"][0]["message"]
        if place < 2:
            assert (streamed.content, finish) == (message["content"], "stop") == (text, "stop")
        else:
            call = json.loads(text)
            assert finish == "tool_calls" and message["content"] is None
            assert message["tool_calls"][0]["function"]["name"] == call["name"]
            assert json.loads(streamed.calls[0]["arguments"]) == call["arguments"]
        grammar = server.engine.running[-1].request.grammar
        assert grammar is not None
        matcher = llguidance.LLMatcher(
            llguidance.LLTokenizer(server.engine.tokenizer.backend.to_str()), grammar
        )
        assert matcher.consume_tokens(server.engine.tokenizer.encode(text)), text
    matcher.reset()
    wrong = server.engine.tokenizer.encode('{"name":"bob"}' if kind == "json_schema" else "[1]")
    assert matcher.validate_tokens(wrong) < len(wrong)


def test_thoughts_are_split_off_and_counted(server: Running) -> None:
    server.engine.script = lambda request: "<think>\nwell now\n</think>\n\nyes"
    body = server.chat().json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("well now", "yes")
    counted = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < counted < body["usage"]["completion_tokens"]
    ((streamed, _),) = joined(server.stream())
    assert (streamed.reasoning, streamed.content) == ("well now", "yes")


def test_logprobs(server: Running) -> None:
    whole = server.chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    content = whole["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == b"hello there"
    assert all(entry["logprob"] == -0.5 for entry in content)
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]
    streamed = [
        entry
        for chunk in server.stream(logprobs=True, top_logprobs=2)[:-1]
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    assert error_of(server.chat(top_logprobs=2))["param"] == "top_logprobs"


def test_settings_of_the_draw_reach_the_engine(server: Running) -> None:
    server.chat(
        top_k=5, min_p=0.1, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-1,
        logit_bias={"7": -100}, n=3, ignore_eos=True,
    )  # fmt: skip
    requests = [running.request for running in server.engine.running]
    assert [request.choice for request in requests] == [0, 1, 2]
    assert len({request.seed for request in requests}) == 1
    sampling = requests[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.logit_bias) == (5, 0.1, {7: -100})
    assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.5, -1)
    assert requests[0].stop_ids == []
    server.chat()
    assert server.engine.running[-1].request.seed != requests[0].seed


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": "2"}, "n", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", None),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"modalities": ["audio"]}, "modalities[0]", "invalid_value"),
        ({"chat_template_kwargs": {"absent": 1}}, "messages", "invalid_messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", None),
        (
            {"messages": [{"role": "user", "content": "a", "train": True}]},
            "messages[0].train",
            "unknown_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "invalid_messages",
        ),
    ],
)
def test_mistakes_name_the_field(
    server: Running, body: dict[str, Any], param: str, code: str | None
) -> None:
    error = error_of(server.chat(**body))
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert not server.engine.running


def test_fields_without_effect_are_named(server: Running) -> None:
    answer = server.chat(metadata={"a": "b"}, store=True, service_tier="auto", verbosity=None)
    assert answer.headers["x-ignored"] == "metadata, store, service_tier"
    options = {"include_obfuscation": False}
    answer = server.chat(stream=True, stream_options=options)
    assert answer.headers["x-ignored"] == "stream_options.include_obfuscation"
    server.service.unknown = "ignore"
    assert server.chat(**{"frobnicat\u00e9": 1}).headers["x-ignored"] == "frobnicat\\xe9"


def test_unknown_fields_inside_others(server: Running) -> None:
    """Clients of several providers send hints for the cache of one of them to all."""
    hint = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "hello"}
    body = {
        "messages": [{"role": "user", "content": [{**part, **hint}, part], **hint}],
        "tools": [{**WEATHER, **hint}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}, **hint},
        "stream": True,
        # A null is a key that was sent, so it is named too.
        "stream_options": {"continuous_usage_stats": True, "vendor": None},
    }
    error_of(server.chat(**body))
    server.service.unknown = "ignore"
    assert set(server.chat(**body).headers["x-ignored"].split(", ")) == {
        "messages.cache_control", "messages.content.cache_control", "tools.cache_control",
        "tool_choice.cache_control", "stream_options.continuous_usage_stats",
        "stream_options.vendor",
    }  # fmt: skip
    assert "hellohello" in server.engine.tokenizer.decode(server.engine.running[-1].request.prompt)
    tool = {"type": "function", "name": "weather", **hint}
    items = [{"role": "user", "content": "hi", **hint}]
    given = {"model": "tiny", "input": items, "tools": [tool], "text": hint}
    answer = server.http.post("/v1/responses", json=given)
    assert set(answer.headers["x-ignored"].split(", ")) == {
        "input.cache_control", "text.cache_control", "tools.function.cache_control",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": NaN}', "no JSON number"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "deeper than 64"),
        (b'{"a": ' + b"[" * 100_000, "deeper than 64"),
    ],
)
def test_bodies_that_are_no_json(server: Running, body: bytes, said: str) -> None:
    answer = server.http.post("/v1/chat/completions", content=body)
    assert said in error_of(answer)["message"]


def test_a_large_body(server: Running) -> None:
    error = error_of(server.http.post("/v1/chat/completions", content=b" " * (2**22 + 1)), 413)
    assert error["code"] == "request_too_large"

    def pieces() -> Any:  # without a content-length
        for _ in range(70):
            yield b" " * 2**16

    error_of(server.http.post("/v1/chat/completions", content=pieces()), 413)


def test_other_models_and_paths(server: Running) -> None:
    assert error_of(server.chat(model="gpt-9"), 404)["code"] == "model_not_found"
    error_of(server.http.get("/v1/nothing"), 404)
    error_of(server.http.get("/v1/chat/completions"), 405)
    listed = server.http.get("/v1/models").json()
    assert listed["object"] == "list" and len(listed["data"]) == 1
    assert server.http.get("/v1/models/tiny").json() == listed["data"][0]
    expected = {"id", "object", "created", "owned_by", "max_model_len", "root", "parent"}
    assert set(listed["data"][0]) == expected
    error_of(server.http.get("/v1/models/other"), 404)


def test_an_engine_that_fails_says_nothing_of_itself(server: Running) -> None:
    server.engine.fail_after = 2
    error = error_of(server.chat(), 500)
    assert "secret" not in error["message"]
    chunks = server.stream()
    assert "secret" not in json.dumps(chunks)
    assert chunks[-2]["error"]["type"] == "server_error" and chunks[-1] == "[DONE]"


def test_a_full_queue(server: Running) -> None:
    server.engine.room = 1
    server.engine.pause.clear()
    answer = server.chat(n=2)  # the second one does not fit, so the first one is undone
    assert error_of(answer, 429)["code"] == "queue_full"
    assert answer.headers["retry-after"] == "1" and answer.headers["retry-after-ms"] == "1000"
    assert server.engine.running[0].over.wait(5)
    assert not server.gate.records.usage()  # it has cost nothing
    server.engine.pause.set()
    assert server.chat().status_code == 200


def test_requests_are_independent(server: Running) -> None:
    def script(request: GenerationRequest) -> str:
        return "warm" if request.sampling.temperature else "cold"

    server.engine.script = script
    answers = [server.chat(temperature=t).json() for t in (1, 0, 1)]
    assert [a["choices"][0]["message"]["content"] for a in answers] == ["warm", "cold", "warm"]
