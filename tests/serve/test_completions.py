"""POST /v1/completions and POST /tokenize."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.running import Running, events
from tests.serve.test_chat_api import error_of


def complete(server: Running, **body: Any) -> Any:
    given = {"model": "tiny", "prompt": "say", **body}
    return server.http.post("/v1/completions", json=given)


def test_whole_and_streamed_are_the_same(server: Running) -> None:
    whole = complete(server, n=2, logprobs=3).json()
    chunks = events(
        complete(server, n=2, logprobs=3, stream=True, stream_options={"include_usage": True}).text
    )
    assert whole["object"] == "text_completion" and chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"] == whole["usage"] and chunks[-2]["choices"] == []
    for choice in range(2):
        pieces = [
            piece for chunk in chunks[:-2] for piece in chunk["choices"]
            if piece["index"] == choice
        ]  # fmt: skip
        expected = whole["choices"][choice]
        assert "".join(piece["text"] for piece in pieces) == expected["text"] == "hello there"
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == ["stop"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [x for p in pieces if p["logprobs"] for x in p["logprobs"][key]]
            assert joined == expected["logprobs"][key]
    logprobs = whole["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "hello there"
    assert [len(top) for top in logprobs["top_logprobs"]] == [3] * len(logprobs["tokens"])
    assert logprobs["text_offset"][1] == len(logprobs["tokens"][0])


def test_the_prompt_is_a_plain_text(server: Running) -> None:
    tokenizer = server.engine.tokenizer
    complete(server)
    complete(server, prompt=[5, 6], max_tokens=1)
    complete(server, prompt=["say"])
    complete(server, prompt=[[5, 6]])
    requests = [running.request for running in server.engine.running]
    assert requests[0].prompt == tokenizer.document_start + tokenizer.encode("say")
    assert requests[0].max_new_tokens == 16
    assert list(requests[0].stop_ids) == tokenizer.stop_ids
    assert requests[1].prompt == requests[3].prompt == [5, 6]
    assert requests[2].prompt == requests[0].prompt


def test_several_prompts(server: Running) -> None:
    """Answer i is to prompt i // n; whole and streamed; every prompt counts once."""
    server.engine.script = lambda request: f"{request.prompt[0]} {request.choice}"
    body = {"prompt": [[5], [6, 7], [8]], "n": 2}
    whole = complete(server, **body).json()
    expected = {2 * i + k: f"{token} {k}" for i, token in enumerate((5, 6, 8)) for k in (0, 1)}
    assert {choice["index"]: choice["text"] for choice in whole["choices"]} == expected
    assert whole["usage"]["prompt_tokens"] == 4
    limits = [running.request.max_new_tokens for running in server.engine.running]
    assert limits == [16] * 6
    chunks = events(complete(server, **body, stream=True).text)[:-1]
    found = dict.fromkeys(expected, "")
    for choice in [chunk["choices"][0] for chunk in chunks]:
        found[choice["index"]] += choice["text"]
    assert found == expected
    ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(6))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": ["a", "b c " * 500]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "a"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"prompt": "a b c " * 500}, "prompt"),
    ],
)
def test_mistakes_name_the_field(server: Running, body: dict[str, Any], param: str) -> None:
    assert error_of(complete(server, **body))["param"] == param
    assert complete(server, echo=False).status_code == 200
    assert error_of(complete(server, prompt=[]))["message"] == "the prompt is empty"


def test_tokenize(server: Running) -> None:
    def ids(**body: Any) -> Any:
        return server.http.post("/tokenize", json={"model": "tiny", **body})

    chat = server.service.models["tiny"].chat
    assert chat is not None
    messages = [{"role": "user", "content": "hello"}]
    found = ids(messages=messages).json()
    assert found == {"tokens": chat.prompt_ids(messages), "count": len(found["tokens"]),
                     "max_model_len": 512}  # fmt: skip
    tokenizer = server.engine.tokenizer
    text = ids(prompt="a <|im_end|>").json()["tokens"]
    assert text == tokenizer.document_start + tokenizer.encode("a <|im_end|>")
    for body in ({}, {"prompt": "a", "messages": messages}):
        assert error_of(ids(**body))["param"] == "prompt"
