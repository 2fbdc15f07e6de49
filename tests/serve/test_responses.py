"""POST /v1/responses, with the openai package as the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.serve.running import Running
from tests.serve.test_chat_api import CALL, error_of
from tests.serve.test_openai_client import Person, strict

openai = pytest.importorskip("openai")
from openai.types.responses import Response  # noqa: E402

WEATHER = {
    "type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}},
    "strict": False,
}  # fmt: skip


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def post(server: Running, **body: Any) -> Any:
    return server.http.post("/v1/responses", json={"model": "tiny", "input": "hi", **body})


def prompt(server: Running) -> str:
    return server.engine.tokenizer.decode(server.engine.running[-1].request.prompt)


def test_a_whole_response(server: Running) -> None:
    answer = post(server, instructions="be short", metadata={"a": "b"}, store=True)
    body = answer.json()
    strict(Response, body)
    assert (body["status"], body["metadata"]) == ("completed", {"a": "b"})
    assert body["output"][0]["content"][0]["text"] == "hello there"
    assert body["usage"]["output_tokens"] == 5
    assert answer.headers["x-ignored"] == "store"
    assert prompt(server).startswith("<|im_start|>system\nbe short<|im_end|>")
    cut = post(server, max_output_tokens=1).json()
    assert (cut["status"], cut["incomplete_details"]) == (
        "incomplete", {"reason": "max_output_tokens"},
    )  # fmt: skip


def test_events_come_in_their_order(server: Running, client: Any) -> None:
    server.engine.script = lambda request: f"<think>well</think>I look.{CALL}"
    found = list(client.responses.create(model="tiny", input="hi", tools=[WEATHER], stream=True))
    kinds = [one.type for one in found]
    assert [one.sequence_number for one in found] == list(range(len(found)))
    assert list(dict.fromkeys(kinds)) == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.reasoning_text.delta",
        "response.reasoning_text.done", "response.content_part.done",
        "response.output_item.done", "response.output_text.delta", "response.output_text.done",
        "response.function_call_arguments.delta", "response.function_call_arguments.done",
        "response.completed",
    ]  # fmt: skip
    for kind in ("output_item", "content_part"):
        added, done = (kinds.count(f"response.{kind}.{end}") for end in ("added", "done"))
        assert added == done == (3 if kind == "output_item" else 2)
    final = found[-1].response
    assert final.output_text == "I look."
    thoughts, message, call = final.output
    assert thoughts.content[0].text == "well" and message.type == "message"
    assert json.loads(call.arguments) == {"city": "B\u00e9"}
    streamed = "".join(o.delta for o in found if o.type == "response.output_text.delta")
    assert streamed == "I look."
    for one in found:
        assert isinstance(one, BaseModel) and not one.__pydantic_extra__, one.type


def test_a_conversation_goes_back(server: Running, client: Any) -> None:
    """The output of one response is input of the next, with the result of the tool."""
    server.engine.script = lambda request: CALL
    turns: list[Any] = [{"role": "user", "content": "weather?"}]
    first = client.responses.create(model="tiny", input=turns, tools=[WEATHER])
    turns += first.output
    turns.append(
        {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}
    )
    server.engine.script = lambda request: "it rains"
    second = client.responses.create(model="tiny", input=turns, tools=[WEATHER])
    assert second.output_text == "it rains"
    text = prompt(server)
    assert "weather?" in text and "rain" in text and '"name": "weather"' in text


def test_parse_with_a_schema(server: Running, client: Any) -> None:
    server.engine.script = lambda request: '{"name": "Ann", "age": 7}'
    answer = client.responses.parse(model="tiny", input="who?", text_format=Person)
    assert answer.output_parsed == Person(name="Ann", age=7)
    assert '"age"' in (server.engine.running[0].request.grammar or "")


def test_other_tools_are_skipped_and_named(server: Running) -> None:
    answer = post(server, tools=[WEATHER, {"type": "web_search"}])
    assert answer.json()["metadata"] == {"skipped_tools": "web_search"}
    assert [tool["name"] for tool in answer.json()["tools"]] == ["weather"]
    assert answer.headers["x-ignored"] == "tools"


def test_thoughts_that_reach_no_message(server: Running) -> None:
    thoughts = {"type": "reasoning", "summary": [], "content": [
        {"type": "reasoning_text", "text": "well"}]}  # fmt: skip
    asked, answered = ({"role": role, "content": "hm"} for role in ("user", "assistant"))
    for items, expected in (
        ([asked, thoughts, answered, asked], None),
        ([thoughts, asked], "input.reasoning"),
        ([asked, thoughts], "input.reasoning"),
        ([asked, {**thoughts, "content": None, "encrypted_content": "x"}, answered, asked],
         "input.reasoning"),
    ):  # fmt: skip
        assert post(server, input=items).headers.get("x-ignored") == expected


def test_a_choice_among_tools_that_are_skipped(server: Running) -> None:
    """Clients that send "auto" with every request."""
    for tools in ([], [{"type": "web_search"}]):
        assert post(server, tools=tools, tool_choice="auto").status_code == 200
    found = error_of(post(server, tools=[], tool_choice="required"), 400)
    assert found["param"] == "tool_choice"


def test_a_failure_is_the_last_event(server: Running, client: Any) -> None:
    server.engine.fail_after = 2
    found = list(client.responses.create(model="tiny", input="hi", stream=True))
    assert found[-1].type == "response.failed"
    assert "secret" not in found[-1].response.error.message
    error_of(post(server), 500)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"input": []}, "input", None),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0]", None),
        ({"input": [{"role": "user", "content": "a", "x": 1}]}, "input[0].x", None),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", None),
    ],
)  # fmt: skip
def test_mistakes_name_the_field(
    server: Running, body: dict[str, Any], param: str, code: str | None
) -> None:
    error = error_of(post(server, **body))
    assert (error["param"], error["code"]) == (param, code)
