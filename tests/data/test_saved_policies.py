"""A run's config.yaml names the files of its data, and no other words, by absolute paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lit_llm.cli import main
from lit_llm.fit.saved_config import with_absolute_paths


def test_names_stay_and_files_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exam.jsonl").write_text("{}\n")
    (tmp_path / "plain").write_text("a file of the name of a template")
    given = {
        "sources": {"a.jsonl": 2.5, "hf://owner/name:train": 1, "general": 1},
        "source_caps": {"a.jsonl": 5, "general": 3},
        "decontaminate": ["exam.jsonl", "stdlib_choice"],
        "chat_template": "plain",
        "columns": {"messages": "dialog"},
        "mixing": {"temperature": 2.0},
    }
    config = {"data": {"init_args": given}, "model": {}, "trainer": {"default_root_dir": "runs/a"}}
    here = str(tmp_path)
    assert with_absolute_paths(config)["data"]["init_args"] == {
        **given,
        "sources": {f"{here}/a.jsonl": 2.5, "hf://owner/name:train": 1, "general": 1},
        "source_caps": {f"{here}/a.jsonl": 5, "general": 3},
        "decontaminate": [f"{here}/exam.jsonl", "stdlib_choice"],
    }
    whole = {"data": {"init_args": {"source_caps": 7}}, "model": {}, "trainer": config["trainer"]}
    assert with_absolute_paths(whole)["data"]["init_args"] == {"source_caps": 7}


def test_the_command_line_takes_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "format": "messages", "columns": {"messages": "dialog", "role": "speaker"},
        "train_on": "none-but-marked", "reasoning": "mask", "split_reasoning": "off",
        "too_long": "drop", "mixing": {"temperature": 2.0}, "source_caps": {"a.jsonl": 5},
        "sources": {"a.jsonl": 1.5, "b.jsonl": 1}, "decontaminate": ["stdlib_choice"],
        "chat_template": "chatml",
    }  # fmt: skip
    options = []
    for key, value in given.items():
        options += [f"--data.{key}", value if isinstance(value, str) else json.dumps(value)]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "finetune/quickstart", *options, "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert {key: data[key] for key in given} == given
    for wrong in ("--data.too_long=shorten", "--data.mixing=equal", "--data.columns=3"):
        assert main(["fit", "--config", "finetune/quickstart", wrong]) == 2
        told = capsys.readouterr().err
        assert wrong[2:].partition("=")[0] in told and "Traceback" not in told
