"""Finetuning killed at any moment, or stopped within an epoch, goes on bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from driver import call, output
from test_resume import check_same, kills
from test_sft import fit, metrics
from test_tree_runs import base, conversations, data  # noqa: F401

from lit_llm import LoRAConfig, SFTModule

LORA = ("--model.lora", json.dumps({"rank": 4, "dropout": 0.1}), "--model.learning_rate", "1e-3")
RUNS = {
    "lora, trees": (*LORA, "--data.packing", "false", "--data.share_prefixes", "true"),
    "full, packed": ("--model.learning_rate", "1e-4", "--data.packing", "true",
                     "--data.share_prefixes", "false"),
    "nf4, packed trees": (*LORA, "--model.quantize", "nf4", "--data.packing", "true"),
}  # fmt: skip


def arguments(folder: Path, base: Path, rows: Path, cache: Path) -> list[str]:
    """About 80 steps, and a checkpoint every fourth."""
    return [
        "fit", "--model", "lit_llm.SFTModule", "--data", "lit_llm.InstructionDataModule",
        "--model.init_from", str(base), "--model.patience", "null", "--data.sources", str(rows),
        "--data.chat_template", str(base / "template.jinja"), "--data.cache_dir", str(cache),
        "--data.seq_len", "192", "--data.micro_batch_size", "1",
        "--data.global_batch_tokens", str(2 * 192), "--data.validate_every", "6",
        "--data.validation_fraction", "0.1", "--checkpoint.every_steps", "4",
        "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "2",
        "--samples.max_new_tokens", "4", "--trainer.default_root_dir", str(folder),
        "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_ten_times_it_continues_bit_equal(
    name: str, tmp_path: Path, base: Path
) -> None:  # fmt: skip
    rows, cache = conversations(tmp_path / "rows.jsonl", weighted=True), tmp_path / "cache"
    epochs = "6" if "--data.packing false" in " ".join(RUNS[name]) else "30"
    settings = [*RUNS[name], "--data.epochs", epochs]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(whole, [*arguments(whole, base, rows, cache), *settings]) == 0
    again = [*arguments(killed, base, rows, cache), *settings, "--ckpt_path", "auto"]
    moments = kills(sum(map(ord, name)), accumulation=2, count=10)
    moments.sort(key=["save", 2].__ne__)  # the first call leaves a checkpoint to go on from
    assert [call(killed, again, kill) for kill in moments] == [-signal.SIGKILL] * 10
    assert call(killed, again) == 0
    assert output(killed).count("resuming from") == 10
    check_same(killed, whole)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, dropout=0.1)])
def test_resume_within_an_epoch_of_weighted_trees(
    lora: LoRAConfig | None, tmp_path: Path, base: Path
) -> None:  # fmt: skip
    rows = conversations(tmp_path / "rows.jsonl", weighted=True)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings: dict[str, Any] = {"epochs": 2.0, "packing": True, "global_batch_tokens": 2 * 192}
    for folder, stops in ((whole, [-1]), (parts, [3, -1])):
        for number, stop in enumerate(stops):
            L.seed_everything(1, verbose=False)
            module = SFTModule(str(base), lora=lora, learning_rate=1e-3, patience=None)
            source = data(base, rows, tmp_path / "cache", validate_every=0, **settings)
            last = max((folder / "checkpoints").glob("step-*.ckpt")) if number else None
            fit(folder, module, source, last, max_steps=stop)
            examples = source.train_dataset.conversations
            assert examples.branches and examples.weights is not None
            assert source.steps > 4 and source.steps % 2 == 0  # it stopped within the first epoch
    # The stopped run validated at its stop; all else is the same.
    assert [{**row, "val_loss": ""} for row in metrics(parts)] == [
        {**row, "val_loss": ""} for row in metrics(whole)
    ]
    assert metrics(parts)[-1] == metrics(whole)[-1]
    final = [(folder / "final" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert final[0] == final[1]
