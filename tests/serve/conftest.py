"""A server with a scripted engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.api.service import ServedModel, Service
from tests.serve.running import Running, serving
from tests.serve.scripted import ScriptedEngine

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the ChatML template."""
    return Tokenizer.train([Path(os.__file__).read_text(encoding="utf-8")], 400)


@pytest.fixture(scope="session")
def qwen(tokenizer: Tokenizer) -> ChatFormat:
    """A format with thoughts and tools, like Qwen3's."""
    return ChatFormat(tokenizer, (TEMPLATES / "qwen3_like.jinja").read_text(encoding="utf-8"))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Keys and records in a database of its own."""
    store = Store(tmp_path / "serve.sqlite")
    yield Gate(store)
    store.close()


@pytest.fixture
def engine(tokenizer: Tokenizer) -> ScriptedEngine:
    """Says "hello there"."""
    return ScriptedEngine(tokenizer, lambda request: "hello there")


@pytest.fixture
def server(
    tokenizer: Tokenizer, qwen: ChatFormat, gate: Gate, engine: ScriptedEngine
) -> Iterator[Running]:
    """A server with the model "tiny"."""
    model = ServedModel("tiny", engine, tokenizer, qwen, digest="ab" * 32, root="path/to/tiny")
    with serving(Service({"tiny": model}, gate), engine) as running:
        yield running
