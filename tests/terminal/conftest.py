"""A tiny chat model: random weights, a trained tokenizer with a ChatML template."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_llm.models.tokenizer import Tokenizer
from tests.tiny_model import write_tiny_model

CONTEXT = 192
TEXT = "user asked the assistant: what is a café in 北京? 🙂 system said hello\n" * 8


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = Tokenizer.train([TEXT], 300)
    write_tiny_model(folder, tokenizer, CONTEXT)
    return folder
