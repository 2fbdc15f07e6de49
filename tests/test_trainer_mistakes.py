"""Trainer settings from the command line: honoured, or refused in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from test_cli import check_mistake, config_file, fit, in_a_folder_of_its_own  # noqa: F401

from lit_llm.cli import main


def callback(name: str, **arguments: object) -> str:
    return json.dumps([{"class_path": name, "init_args": arguments}])


SCHEDULER = callback("GradientAccumulationScheduler", scheduling={"4": 2})
STOPPING = callback("EarlyStopping", monitor="val_los")
PRUNING = callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--trainer.val_check_interval", "100"], ["val_check_interval", "100"]),
        (["--trainer.val_check_interval", "0"], ["trainer.val_check_interval=0", "validate_every"]),
        (["--trainer.val_check_interval", "0.0"], ["trainer.val_check_interval=0.0"]),
        (["--trainer.val_check_interval", "1.0"], ["data.validate_every=0"]),
        (["--trainer.max_epochs", "3"], ["trainer.max_epochs=3", "data.tokens", "one epoch"]),
        (["--trainer.max_epochs", "1000"], ["trainer.max_epochs=1000", "one epoch"]),
        (["--trainer.accumulate_grad_batches", "7"], ["accumulate_grad_batches=7", "give 1"]),
        (
            ["--trainer.reload_dataloaders_every_n_epochs", "1"],
            ["trainer.reload_dataloaders_every_n_epochs=1", "made once"],
        ),
        (["--trainer.num_sanity_val_steps", "-3"], ["trainer.num_sanity_val_steps=-3"]),
        (["--trainer.limit_train_batches", "0"], ["trainer.limit_train_batches=0", "nothing"]),
        (["--trainer.max_time", "00:00:00:00"], ["trainer.max_time", "nothing"]),
        (["--trainer.log_every_n_steps", "-1"], ["trainer.log_every_n_steps=-1"]),
        (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val=-1"]),
        (["--trainer.gradient_clip_algorithm", "value"], ["trainer.gradient_clip_val"]),
        (["--trainer.barebones", "true"], ["trainer.barebones=True", "checkpoints"]),
        (["--trainer.model_registry", "x"], ["trainer.model_registry=x"]),
        (["--trainer.accelerator", "tpu"], ["trainer.accelerator=tpu", "torch_xla"]),
        (["--trainer.devices", "-1"], ["trainer.devices=-1"]),
        (["--trainer.devices", "1.5"], ["trainer.devices=1.5"]),
        (["--trainer.callbacks", SCHEDULER], ["GradientAccumulationScheduler", "global_batch"]),
        (["--trainer.callbacks", STOPPING], ["val_los", "val_bits_per_byte"]),
        (["--trainer.logger", "Foo"], ["trainer.logger=Foo", "no such class"]),
        (["--trainer.logger", "[CSVLogger]"], ["trainer.logger=CSVLogger", "lit_llm.CSVLogger"]),
        (["--trainer.callbacks", PRUNING], ["ModelPruning", "before the network is there"]),
        (["--trainer.callbacks", callback("BackboneFinetuning")], ["BackboneFinetuning"]),
        (
            ["--trainer.callbacks", callback("Timer", duration="foo")],
            [
                "`Timer(duration='foo')` is not a valid duration. Expected a string in the format "
                "DD:HH:MM:SS."
            ],
        ),
        (
            ["--trainer.callbacks", callback("BatchSizeFinder")],
            ["batch_size not found", "batch_arg_name=micro_batch_size"],
        ),
        (["--trainer.max_steps", "0"], ["trainer.max_steps=0", "nothing"]),
        (["--trainer.plugins", "foo"], ["trainer.plugins=foo", "no such class"]),
        (["--trainer.max_step", "1"], ["unknown key trainer.max_step", "trainer.max_steps"]),
    ],
)
def test_settings_that_are_refused(
    tmp_path: Path,
    corpus: Path,
    arguments: list[str],
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_mistake(*fit(config_file(tmp_path, corpus), *arguments, capsys=capsys), *parts)


def test_no_metrics_but_those_of_validations(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fit(
        config_file(tmp_path, corpus), "--trainer.log_every_n_steps", "0", capsys=capsys
    )
    assert status == 0, error
    with open(tmp_path / "runs" / "mine" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row["val_loss"] and not row["train_loss"] for row in rows)


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_a_logger_by_its_short_name_writes_to_the_run_folder(
    tmp_path: Path, corpus: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fit(config_file(tmp_path, corpus), "--trainer.logger", name, capsys=capsys)
    assert status == 0, error
    run = tmp_path / "runs" / "mine"
    assert (run / "metrics.csv").exists() is (name == "CSVLogger")
    assert bool(list(run.rglob("events.out.tfevents.*"))) is (name == "TensorBoardLogger")


def test_nothing_to_evaluate_is_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus, trainer__limit_val_batches=0)
    assert main(["validate", "--config", str(config), "--model.init_from", "x"]) == 2
    assert "trainer.limit_val_batches=0: validate would do nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "micro_batch_size"),
        (MemoryError(), "micro_batch_size"),
        (RuntimeError("listen: EADDRINUSE, address already in use"), "MASTER_PORT"),
        (ValueError("of our own code"), None),
        (KeyError("a bug"), None),
    ],
)
def test_mistakes_and_bugs_are_told_apart(error: Exception, said: str | None) -> None:
    from lit_llm.fit.mistakes import explain

    told = explain(error)
    assert told is None if said is None else said in str(told)


def test_a_callback_with_an_enum_for_a_default(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    status, error = fit(config, "--trainer.callbacks+=Timer", capsys=capsys)
    assert status == 0, error
    saved = yaml.safe_load((tmp_path / "runs" / "mine" / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"
