"""A tiny random chat model, in memory and exported, and lm-eval's own backend on the exported
directory."""

from __future__ import annotations

import os
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lit_llm import Tokenizer, Transformer, TransformerConfig


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are written into the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-like model of 128 positions that has an opinion about every token."""
    library = Path(os.__file__).parent
    tokenizer = Tokenizer.train(
        [(library / name).read_text() for name in ("os.py", "typing.py", "ast.py")], 400
    )
    config = TransformerConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=128,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("exported")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(exported: Path) -> Transformer:
    return Transformer.from_pretrained(exported).eval()


@pytest.fixture(scope="session")
def tokenizer(exported: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(exported)


@pytest.fixture(scope="session")
def hf(exported: Path) -> HFLM:
    return HFLM(pretrained=str(exported), device="cpu", batch_size=4)


@pytest.fixture
def no_default_tasks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """lm-eval's own index, which takes ten seconds to read, is empty; the list says what was asked
    for."""
    asked = []
    real = lm_eval.tasks.TaskManager

    def manager(include_defaults: bool, include_path: list[Path]) -> lm_eval.tasks.TaskManager:
        asked.append(include_defaults)
        return real(include_defaults=False, include_path=include_path)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    return asked
