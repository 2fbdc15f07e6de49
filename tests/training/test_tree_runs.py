"""Runs on rows of token trees: accumulation and processes change nothing, other networks refuse."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from driver import together

from lit_llm import (
    CSVLogger,
    InstructionDataModule,
    PretrainModule,
    SFTModule,
    UserError,
)

# Thoughts are rendered in the last answer only, as Qwen3's and R1's templates do.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 192}
    folder = random_base(tmp_path_factory.mktemp("base"), 0.2, **shape)
    (folder / "template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module", params=["weights of 1", "other weights"])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weighted = request.param == "other weights"
    return conversations(tmp_path_factory.mktemp("rows") / "rows.jsonl", weighted)


def conversations(file: Path, weighted: bool) -> Path:
    """Thirty conversations of one to three answers with thoughts of different lengths."""
    with file.open("w") as out:
        for i in range(30):
            messages: list[dict[str, Any]] = []
            for turn in range(1 + i % 3):
                answer = {"role": "assistant", "content": "yes " * (1 + i % 4),
                          "reasoning_content": "so " * (1 + (i + turn) % 5)}  # fmt: skip
                if weighted:
                    answer["weight"] = (0.1, 1, 3)[turn]
                messages += [{"role": "user", "content": f"Is {i} {turn}?"}, answer]
            row = {"messages": messages, **({"weight": 0.01 * (1 + i % 4)} if weighted else {})}
            out.write(json.dumps(row) + "\n")
    return file


def data(base: Path, rows: Path, cache: Path, **settings: Any) -> InstructionDataModule:
    defaults = {"seq_len": 192, "micro_batch_size": 2, "global_batch_tokens": 8 * 192,
                "epochs": 4.0, "min_steps": 0, "packing": False, "validation_fraction": 0.1,
                "chat_template": str(base / "template.jinja")}  # fmt: skip
    return InstructionDataModule(
        str(rows), tokenizer=str(base), cache_dir=str(cache), **{**defaults, **settings}
    )


def fit(rank: int, folder: Path, base: Path, rows: Path, micro: int, devices: int) -> int:
    L.seed_everything(1, verbose=False)
    # So small a learning rate leaves the weights, and with them the gradients, as they are.
    module = SFTModule(str(base), learning_rate=1e-12, grad_clip=None, patience=None)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_checkpointing=False,
    )  # fmt: skip
    source = data(base, rows, folder / "cache", micro_batch_size=micro)
    trainer.fit(module, source)
    assert source.train_dataset.conversations.branches
    assert trainer.accumulate_grad_batches == 8 // (micro * devices)
    return 0


def logged(folder: Path, *names: str) -> list[list[float]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [[float(row[name]) for name in names if row[name]] for row in csv.DictReader(file)]


def test_accumulation_and_processes_change_nothing(tmp_path: Path, base: Path, rows: Path) -> None:
    for micro in (8, 4, 1):  # accumulation of 1, 2 and 8
        fit(0, tmp_path / str(micro), base, rows, micro, devices=1)
    out = tmp_path / "out"
    two = tmp_path / "two"
    assert together(2, out, fit, two, base, rows, 1, 2) == 0, out.read_text()[-3000:]
    whole = logged(tmp_path / "8", "train_loss", "grad_norm", "val_loss")
    assert len(whole) > 10
    for other in ("4", "1", "two"):
        for ours, theirs in zip(
            logged(tmp_path / other, "train_loss", "grad_norm", "val_loss"), whole, strict=True
        ):
            assert ours == pytest.approx(theirs, rel=2e-6)


def test_a_network_that_reads_no_trees_is_refused(tmp_path: Path, base: Path, rows: Path) -> None:
    class Other(PretrainModule):
        def build_model(self) -> torch.nn.Module:
            return torch.nn.Sequential(
                torch.nn.Embedding(self.config.vocab_size, 8),
                torch.nn.Linear(8, self.config.vocab_size),
            )

    def run(**settings: Any) -> None:
        trainer = L.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        )  # fmt: skip
        source = data(base, rows, tmp_path / "cache", **settings)
        trainer.fit(Other({"hidden_size": 8, "num_layers": 1, "num_heads": 1}), source)

    with pytest.raises(UserError, match=r"data\.share_prefixes: .*; set it to false"):
        run()
    run(share_prefixes=False)
