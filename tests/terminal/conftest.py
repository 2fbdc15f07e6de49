"""A tiny chat model: random weights, a trained tokenizer with a ChatML template."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

CONTEXT = 192
TEXT = "user asked the assistant: what is a café in 北京? 🙂 system said hello\n" * 8


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    tokenizer = Tokenizer.train([TEXT], 300)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=4,
        max_seq_len=CONTEXT, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    model = Transformer(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, model_max_length=CONTEXT)
    return folder
