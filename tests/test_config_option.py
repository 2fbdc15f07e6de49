"""--config and --print_config behave the same for every verb, whichever parser the verb has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_llm.cli import VERBS, main

# Command -> (arguments it needs, a setting with two values, the dotted key that --print_config
# prints for it, a misspelled key and the key that it is close to).
COMMANDS: dict[str, tuple[list[str], str, Any, Any, str, str]] = {
    "fit": (["-c", "pretrain/quickstart"], "trainer.max_steps", 3, 4, "checkpoin", "checkpoint"),
    "validate": (["-c", "pretrain/quickstart"], "seed_everything", 3, 4, "trainr", "trainer"),
    "test": (["-c", "pretrain/quickstart"], "seed_everything", 3, 4, "trainr", "trainer"),
    "predict": (["-c", "pretrain/quickstart"], "seed_everything", 3, 4, "trainr", "trainer"),
    "corpus build": (
        ["--input", "x", "--output", "y"], "dedup.threshold", 0.5, 0.6, "dedop", "dedup"
    ),
    "corpus report": (["x"], "corpus", "y", None, "corpu", "corpus"),
    "corpus explain": (["x", "y"], "json", True, None, "jsn", "json"),
    "corpus remove": (["x"], "reason", "a", "b", "reasn", "reason"),
    "tokenizer train": ([], "vocab_size", 300, 301, "vocab_sze", "vocab_size"),
    "tokenizer inspect": (["x"], "sample_mb", 3.0, 4.0, "sample_m", "sample_mb"),
    "plan": ([], "gpus", 3, 4, "gpuss", "gpus"),
    "evaluate": (["x", "--tasks", "y"], "limit", 3, 4, "limt", "limit"),
    "compare": (["x"], "margin", 0.02, 0.03, "margn", "margin"),
    "chat": (["x"], "top_k", 3, 4, "top_kk", "top_k"),
    "generate": (["x"], "top_k", 3, 4, "top_kk", "top_k"),
    "serve": (["x"], "port", 3, 4, "prt", "port"),
    "serve keys create": (["x"], "tokens_per_day", 3, 4, "tokens_per_dy", "tokens_per_day"),
    "serve keys list": ([], "json", True, None, "jsn", "json"),
    "serve keys limit": (["x"], "requests_at_once", 3, 4, "requests_at_onc", "requests_at_once"),
    "serve keys rotate": (["x"], "store", "a", "b", "stre", "store"),
    "serve keys revoke": (["x"], "store", "a", "b", "stre", "store"),
    "serve usage": ([], "json", True, None, "jsn", "json"),
    "serve erase": ([], "user", "a", "b", "usr", "user"),
    "import": (["x", "y"], "dtype", "float32", "bfloat16", "dtipe", "dtype"),
    "export": (["x", "y", "--format", "hf"], "dtype", "float32", "bfloat16", "dtipe", "dtype"),
    "merge": (["x", "y"], "dtype", "float32", "bfloat16", "dtipe", "dtype"),
    "inspect": (["x"], "json", True, None, "jsn", "json"),
    "report": (["x"], "compare", "a", "b", "compre", "compare"),
}  # fmt: skip


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The output of --print_config."""

    def run(command: str, *args: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), *args, "--print_config"])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return run


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def found(text: str, key: str) -> Any:
    value = yaml.safe_load(text)
    for part in key.split("."):
        value = value[part]
    return value


def test_every_verb_is_tried() -> None:
    # launch reads its options before the command that it is given: tests/terminal/test_launch.py.
    assert {command.split()[0] for command in COMMANDS} == set(VERBS) - {"launch"}


@pytest.mark.parametrize("command", COMMANDS)
def test_files_and_options(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    needed, key, value, other, misspelled, near = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    file, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(yaml.safe_dump(nested(key, value)))
    given = [] if key == "corpus" else needed
    assert found(printed(command, *given, "--config", str(file)), key) == value
    if other is not None:
        # An option wins over a file in either order, and the later of two files wins.
        option = [f"--{key}", str(other)]
        for args in ([*option, "-c", str(file)], [f"-c={file}", *option]):
            assert found(printed(command, *needed, *args), key) == other
        second.write_text(yaml.safe_dump(nested(key, other)))
        both = printed(command, *needed, f"--config={file}", f"--config={second}")
        assert found(both, key) == other
    # What --print_config printed is a config that gives the same configuration.
    text = printed(command, *given, "--config", str(file))
    second.write_text(text)
    again = printed(command, "--config", str(second))
    assert yaml.safe_load(again) == yaml.safe_load(text)
    for content, said in (
        (f"{misspelled}: 1", f"unknown key {misspelled}: did you mean {near}?"),
        ("- a", "holds no settings"),
        ("a: [", "broken YAML"),
    ):
        file.write_text(content)
        assert main([*command.split(), *needed, "--config", str(file)]) == 2
        error = capsys.readouterr().err
        assert said in error and str(file) in error and len(error.splitlines()) == 1, error
    for args, said in ((["--config", "absent.yaml"], "--config absent.yaml: "),
                       (["--config"], "--config: give a file")):  # fmt: skip
        assert main([*command.split(), *needed, *args]) == 2
        assert said in capsys.readouterr().err
