"""The API with the engine and a tiny model of random weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch

from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.lora import LoRAConfig, apply_lora
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.api.service import Service
from lit_llm.serve.loading import load_served
from lit_llm.serve.options import server_parser
from tests.serve.running import Running, serving
from tests.serve.test_chat_api import error_of, joined
from tests.tiny_model import write_tiny_model

CONTEXT = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model and, in "adapter", a LoRA adapter that changes its answers."""
    place = tmp_path_factory.mktemp("engine") / "tiny"
    model = write_tiny_model(place, tokenizer, CONTEXT)
    apply_lora(model, LoRAConfig(rank=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    save_adapter(model, place / "adapter", str(place))
    return place


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = server_parser().parse_args(
        [str(folder), "--adapter", f"law={folder / 'adapter'}", "--kv_gb", "0.05",
         "--prefix_gb", "0.02", "--device", "cpu"]
    )  # fmt: skip
    models = load_served(options)
    store = Store(tmp_path_factory.mktemp("store") / "serve.sqlite")
    engine: Any = models["tiny"].engine
    with serving(Service(models, Gate(store)), engine) as running:
        yield running
    store.close()


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_a_greedy_answer_is_that_of_generate(server: Running, folder: Path) -> None:
    dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
    model, tokenizer = load_model(folder, dtype=dtype)
    pack_linears(model)
    chat = server.service.models["tiny"].chat
    assert chat is not None
    messages = [{"role": "user", "content": "hello"}]
    (ids,) = generate(model, [chat.prompt_ids(messages)], 12, GREEDY, stop_ids=chat.stop_ids)
    found = server.chat(messages=messages, temperature=0, max_tokens=12)
    assert content(found) == tokenizer.decode(ids)


def test_a_seed_gives_the_same_answer_whole_streamed_and_in_company(server: Running) -> None:
    body = {"seed": 5, "max_tokens": 16, "n": 2}
    alone = server.chat(**body).json()["choices"]
    first, second = (choice["message"]["content"] for choice in alone)
    assert first != second
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(server.stream(**body))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for chunks in found:
        assert [message.content for message, _ in joined(chunks)] == [first, second]


def test_schemas_hold(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "ok": {"type": "boolean"}},
        "required": ["kind", "ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for seed in range(5):
        answer = json.loads(content(server.chat(response_format=form, seed=seed, max_tokens=80)))
        jsonschema.validate(answer, schema)


def test_a_demanded_call(server: Running) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Bonn", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    # ChatML's own template takes no tools: then they are refused, not lost.
    refusal = error_of(server.chat(tools=tools, tool_choice="required"))
    assert "leaves out the tools" in refusal["message"]


def test_an_adapter_is_a_model_of_its_own(server: Running) -> None:
    base = server.chat(temperature=0, max_tokens=12)
    adapted = server.chat(model="law", temperature=0, max_tokens=12)
    assert content(base) != content(adapted)
    assert server.http.get("/v1/models/law").json()["parent"] == "tiny"


def test_a_prefix_that_was_seen_is_counted(server: Running) -> None:
    messages = [{"role": "user", "content": "the same long beginning " * 12}]
    answers = [server.chat(messages=messages, max_tokens=2, seed=1) for _ in range(2)]
    cached = [a.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers]
    assert cached[0] == 0 and cached[1] >= 128
    assert content(answers[0]) == content(answers[1])


def test_stop_and_logprobs(server: Running) -> None:
    whole = content(server.chat(seed=3, max_tokens=24))
    stop = whole[3:5]
    stopped = server.chat(seed=3, max_tokens=24, stop=[stop], logprobs=True, top_logprobs=2)
    assert content(stopped) == whole[: whole.index(stop)]
    entry = stopped.json()["choices"][0]["logprobs"]["content"][0]
    assert entry["logprob"] < 0 and len(entry["top_logprobs"]) == 2


@pytest.mark.slow
def test_the_command_serves_and_ends(folder: Path, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "lit_llm", "serve", str(folder), "--port", "0", "--kv_gb", "0.05",
         "--store", str(tmp_path / "s.sqlite")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.startswith("serving tiny at http://127.0.0.1:"), said
        with httpx.Client(base_url=said.split()[-1].removesuffix("/v1"), timeout=60) as http:
            body = {"model": "tiny", "max_tokens": 4,
                    "messages": [{"role": "user", "content": "hi"}]}  # fmt: skip
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0
    finally:
        program.kill()
        program.communicate()


@pytest.mark.slow
def test_the_check_of_the_machine(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lit_llm", "serve", str(folder), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "answers in" in run.stdout and run.returncode in (0, 1), run.stderr
