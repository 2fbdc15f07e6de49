"""Preflight: said before training, refused where it cannot fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from lit_llm import PretrainDataModule, PretrainModule
from lit_llm.errors import UserError
from lit_llm.plan import preflight
from lit_llm.plan.memory import Setup, training_memory
from lit_llm.plan.preflight import Preflight
from lit_llm.plan.shape import typical_shape


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "a.txt").write_text(
        "\n\n".join(f"line {i}: the cat sat on mat {i % 7}" for i in range(3000))
    )
    return folder


def fit(corpus: Path, tmp_path: Path, shape: dict | None = None, **data: int) -> None:
    source = PretrainDataModule(sources=str(corpus / "a.txt"), vocab_size=300, seq_len=32,
                                tokens=2048, cache_dir=str(corpus / "cache"), **data)  # fmt: skip
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False,
                        callbacks=[Preflight()], enable_checkpointing=False,
                        enable_progress_bar=False, max_steps=1)  # fmt: skip
    shape = shape or {"hidden_size": 32, "num_layers": 1, "num_heads": 2}
    trainer.fit(PretrainModule(shape, compile=False), source)


def test_one_line(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(corpus, tmp_path, micro_batch_size=2)
    lines = [record.message for record in caplog.records if record.message.startswith("plan: ")]
    assert (
        len(lines) == 1
        and "parameters" in lines[0]
        and "FLOPs" in lines[0]
        and "at the peak" in lines[0]
    )


def test_refused_with_the_nearest_that_fits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "device_memory", lambda device: 1.2e6)
    with pytest.raises(UserError, match=r"set data\.micro_batch_size=4 "):
        fit(corpus, tmp_path, micro_batch_size=16, global_batch_tokens=512)
    monkeypatch.setattr(preflight, "device_memory", lambda device: 1e3)
    with pytest.raises(UserError, match=r"lower data\.seq_len"):
        fit(corpus, tmp_path, micro_batch_size=16)


def test_blocks_are_computed_again_only_where_memory_asks_for_it() -> None:
    shape, setup = typical_shape(1e9), Setup(micro_batch_size=16, seq_len=4096)
    assert (
        preflight.least_checkpointing(shape, setup, None)
        == preflight.least_checkpointing(shape, setup, 1e12)
        == 0
    )
    share = preflight.least_checkpointing(shape, setup, 40e9)
    assert 0 < share < 1
    fewer = replace(setup, checkpointed=share - 1 / shape.layers)
    assert (
        training_memory(shape, replace(setup, checkpointed=share)).peak
        <= 36e9
        < training_memory(shape, fewer).peak
    )
    assert preflight.least_checkpointing(shape, setup, 1e9) == 1


def test_a_run_takes_what_was_found(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "least_checkpointing", lambda *of: 0.5)
    modules = []
    monkeypatch.setattr(
        PretrainModule, "on_fit_start", lambda self: modules.append(self), raising=False
    )
    fit(
        corpus,
        tmp_path,
        micro_batch_size=2,
        shape={"hidden_size": 32, "num_layers": 4, "num_heads": 2},
    )
    again = ["forward" in vars(block) for block in modules[0].network.layers]
    assert again == [False, True, False, True]


def test_memory_of_this_machine() -> None:
    assert preflight.device_memory(torch.device("cpu")) > 1e8
