"""Other people's loggers by class_path: each leaves its data on disk, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from lit_llm.cli import main

LIGHTNING = "lightning.pytorch.loggers."


def config_file(folder: Path, corpus: Path, logger: dict[str, Any]) -> Path:
    config = {
        "model": {
            "class_path": "lit_llm.PretrainModule",
            "init_args": {"transformer": {"hidden_size": 32, "num_heads": 2}},
        },
        "data": {
            "class_path": "lit_llm.PretrainDataModule",
            "init_args": {"corpus": str(corpus), "seq_len": 32, "micro_batch_size": 2,
                          "tokens": 640},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 1,
                    "logger": [logger], "log_every_n_steps": 1, "default_root_dir": "run"},
    }  # fmt: skip
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.slow  # importing mlflow takes seconds
def test_mlflow_in_files(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    # MLflow 3 refuses its file store without this; its databases need the full package.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = {
        "class_path": LIGHTNING + "MLFlowLogger",
        "init_args": {"tracking_uri": (tmp_path / "mlruns").as_uri()},
    }
    assert main(["fit", "--config", str(config_file(tmp_path, corpus, logger))]) == 0
    (losses,) = tmp_path.glob("mlruns/*/*/metrics/train_loss")
    assert [line.split()[2] for line in losses.read_text().splitlines()] == ["1", "2"]
    (size,) = tmp_path.glob("mlruns/*/*/params/transformer/hidden_size")
    assert size.read_text() == "32"


def test_tensorboard(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = {
        "class_path": LIGHTNING + "TensorBoardLogger",
        "init_args": {"save_dir": "board", "name": "mine"},
    }
    assert main(["fit", "--config", str(config_file(tmp_path, corpus, logger))]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("board/mine/version_0")
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2]


@pytest.mark.slow  # a process of its own, which W&B's service must not keep from ending
def test_wandb_offline(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    lit_llm_command: Callable[..., CompletedProcess[str]],
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    logger = {
        "class_path": LIGHTNING + "WandbLogger",
        "init_args": {"offline": True, "save_dir": "run"},
    }
    done = lit_llm_command("fit", "--config", config_file(tmp_path, corpus, logger), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (data,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    assert b"train_loss" in data.read_bytes()
