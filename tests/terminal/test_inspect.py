"""lit_llm inspect: numbers from the config and the headers, without a weight read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.terminal.inspect import inspect_checkpoint


def test_a_directory(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(chat_model)
    total = sum(p.numel() for p in model.parameters())
    assert main(["inspect", str(chat_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "Hugging Face directory" and facts["family"] == "llama"
    assert facts["parameters"] == total and facts["stored_bytes"] == {"F32": 4 * total}
    assert facts["embedding_parameters"] == model.embed.weight.numel()
    assert facts["weight_bytes"] == {"fp32": 4 * total, "bf16": 2 * total, "int8": total}
    # Bytes, keys and values, layers, channels
    assert facts["kv_cache_bytes_per_token"]["bf16"] == 2 * 2 * 2 * 32
    # 2 a weight that multiplies: all but the input embedding and the norms
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert facts["forward_flops_per_token"] == 2 * (total - norms - model.embed.weight.numel())
    assert facts["context"] == 192 and facts["vocabulary"] == tokenizer.vocab_size
    assert (
        facts["special_tokens"]["eos_token"] == "<|endoftext|>" and facts["chat_template"] is True
    )
    assert "active_parameters" not in facts

    assert main(["inspect", str(chat_model)]) == 0
    text = capsys.readouterr().out
    assert f"{total:,}" in text and "192 tokens" in text and "eos_token <|endoftext|>" in text


def test_no_weight_is_read(chat_model: Path, tmp_path: Path) -> None:
    """A file that is one hole on the disk, of a header and 40 GB of nothing."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((chat_model / name).read_bytes())
    shape = [10**6, 10**4]
    header = json.dumps(
        {
            "model.embed_tokens.weight": {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [0, 4 * 10**10],
            }
        }
    )
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * 10**10)
    assert inspect_checkpoint(tmp_path)["stored_bytes"] == {"F32": 4 * 10**10}


def test_gguf_and_experts(chat_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(chat_model)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=3, num_heads=4, num_experts=4,
        expert_size=32, intermediate_size=32, experts_per_token=1,
    )  # fmt: skip
    model = Transformer(config)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "q8_0")
    facts = inspect_checkpoint(tmp_path / "m.gguf")
    assert (
        facts["format"] == "GGUF"
        and facts["family"] == "mixtral"
        and set(facts["stored_bytes"]) == {"F32", "Q8_0"}
    )
    assert sum(facts["stored_bytes"].values()) < (tmp_path / "m.gguf").stat().st_size
    # Layers, idle experts, matrices
    assert facts["parameters"] - facts["active_parameters"] == 3 * 3 * 3 * 32 * 32
    assert facts["vocabulary"] == facts["tokenizer_tokens"] == tokenizer.vocab_size


def test_a_training_checkpoint(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(chat_model)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "checkpoints").mkdir()
    checkpoint: dict[str, Any] = {
        "hyper_parameters": {"transformer": model.config.to_dict()}, "global_step": 7,
        "state_dict": {f"model.{name}": p.to(torch.bfloat16) for name,
                       p in model.state_dict().items()},
    }  # fmt: skip
    file = tmp_path / "checkpoints" / "step-7.ckpt"
    torch.save(checkpoint, file)
    facts = inspect_checkpoint(file)
    assert (
        facts["step"] == 7
        and facts["tokens_seen"] is None
        and set(facts["stored_bytes"]) == {"bfloat16"}
    )
    (tmp_path / "metrics.csv").write_text("step,tokens,train_loss\n6,600,1.0\n7,700,1.0\n")
    assert main(["inspect", str(file)]) == 0
    assert "step 7, 700 tokens seen" in capsys.readouterr().out

    torch.save({"something": 1}, file)
    with pytest.raises(UserError, match="not a checkpoint of this package"):
        inspect_checkpoint(file)
    file.write_bytes(b"broken")
    with pytest.raises(UserError, match="not a whole training checkpoint"):
        inspect_checkpoint(file)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, said in (
        ("absent", "no such file or folder"),
        ("notes.txt", "is not a checkpoint"),
        ("", "holds no"),
    ):
        with pytest.raises(UserError, match=said):
            inspect_checkpoint(tmp_path / path)
