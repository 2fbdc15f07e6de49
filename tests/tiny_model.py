"""A tiny model with random weights and its tokenizer, as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer


def write_tiny_model(folder: Path, tokenizer: Tokenizer, context: int) -> Transformer:
    """Write the directory; the weights are large enough that answers differ."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=4,
        max_seq_len=context, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, model_max_length=context)
    return model
