"""Hostile and careless words on the command line: one line with the key and the mend, status 2."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import in_a_folder_of_its_own  # noqa: F401
from test_newcomer import fit

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.settings.arguments import Parser, explain_mistake
from lit_llm.settings.shell import command_line


def command(*args: str, to: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    words = shlex.join([sys.executable, "-m", "lit_llm", *args])
    return subprocess.run(
        ["bash", "-c", f"{words} {to}"], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("args", [["--help"], ["plan", "--params", "1B", "--tokens", "1B"]])
def test_an_output_without_room(args: list[str]) -> None:
    done = command(*args, to="> /dev/full")
    assert done.returncode == 2
    assert "what the output goes to: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_llm.io.cache import default_cache_dir

    monkeypatch.delenv("LIT_LLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    assert default_cache_dir().name == f"lit_llm-{os.getuid()}"
    for name in ("LIT_LLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/x")
        with pytest.raises(PermissionError, match="set LIT_LLM_CACHE to another folder"):
            default_cache_dir()
        monkeypatch.delenv(name)


@pytest.mark.parametrize("section", ["trainer", "checkpoint", "samples"])
def test_a_list_in_place_of_a_section(
    corpus: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.yaml").write_text(f"{section}: [cpu]\n")
    assert fit("--config", "list.yaml", "--data.corpus", str(corpus)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lit_llm fit: {section}"), said
    assert len(said.splitlines()) == 1, said


def test_a_folder_that_is_not_utf_8(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "runs/\udcff"
    assert fit("--data.corpus", str(corpus), "--trainer.default_root_dir", folder) == 2
    assert "'runs/\\udcff': not UTF-8" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_path_that_begins_with_a_hyphen_is_no_option() -> None:
    printed = command_line("lit_llm", "generate", Path("-run/final"), "--prompt", "The ")
    assert printed == "lit_llm generate ./-run/final --prompt 'The '"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--task", "x"], "unknown option --task: did you mean --tasks?"),
        (["--", "x", "--tasks", "y"], "required: --tasks"),
        (["--tasks", "y", "--", "x", "--tasks"], "--tasks: stands after --"),
    ],
)
def test_unknown_options_are_told_first(args: list[str], said: str) -> None:
    parser = Parser(prog="lit_llm test")
    parser.add_argument("ckpt")
    parser.add_argument("--tasks", required=True)
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        parser.parse_args(args)


def test_a_key_below_a_value() -> None:
    text = (
        "Parser key \"model.optimizer\": Expected a typing.Literal['adamw']. "
        "Got value: NestedArg(key='learning_rate', val='1')"
    )
    assert explain_mistake(text).startswith("unknown key model.optimizer.learning_rate: ")


def test_a_job_of_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--slurm", "--", "fit", "--config", "nope.yaml"]) == 2
    assert "--config nope.yaml: no such file or preset" in capsys.readouterr().err
    assert not Path("nope.sbatch").exists()


RUN = """\
model:
  class_path: lit_llm.PretrainModule
data:
  class_path: lit_llm.PretrainDataModule
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "run.yaml"], "run.yaml: give it as --config run.yaml"),
        (["fit", "--config"], "--config: give a file or a preset: finetune/"),
        (["fit", "--config="], "--config: give a file or a preset: finetune/"),
        (
            ["fit", "--config", "corpus/web"],
            "--config corpus/web: a preset of lit_llm corpus build",
        ),
        (["corpus", "build", "--config", "pretrain/quickstart"], "a preset of lit_llm fit"),
        (["corpus", "build", "--config"], "--config: give a file or a preset: corpus/"),
        (["fit", "--config", "run.yaml", "--data.sources"], "--data.sources: give a value"),
        (
            ["fit", "--config", "run.yaml", "--trainer.max_steps="],
            "--trainer.max_steps: give a value",
        ),
        (
            ["fit", "--config", "run.yaml", "--trainer.max_time", "yesterday"],
            "trainer.max_time=yesterday: must be DD:HH:MM:SS",
        ),
        (
            ["fit", "--config", "run.yaml", "--model", "lit_llm.PretrainModul"],
            "model: lit_llm has no class PretrainModul: did you mean lit_llm.PretrainModule?",
        ),
        (
            ["fit", "--config", "run.yaml", "--trainer.callbacks", "[lit_llm.SpikeGard]"],
            "trainer.callbacks: lit_llm has no class SpikeGard: did you mean lit_llm.SpikeGuard?",
        ),
        (
            ["fit", "--config", "run.yaml", "--model.init_arg.decay", "3"],
            "unknown key model.init_arg: did you mean model.init_args?",
        ),
        (["fit", "--config", "model.yaml"], "data: no class named; give data.class_path"),
        (
            ["validate", "--config", "run.yaml", "--ckpt_path", "hf"],
            "--ckpt_path hf: a Hugging Face directory, not a checkpoint; give it as "
            "--model.init_from",
        ),
        (["fit", "--config", "run.yaml", "--data.corpus", "a-run"], "a-run: the folder of a run"),
        (
            ["corpus", "build", "--input", "run.yaml", "--output", "c", "--language.keep", "en"],
            "language.keep=en: must be a list such as",
        ),
        (
            ["corpus", "build", "--input", "run.yaml", "--output", "c", "--language.keep", "[xx]"],
            "lit_llm corpus: language.keep: 'xx' is not a language",
        ),
        (["inspect", "empty.ckpt"], "empty.ckpt: is empty, not a training checkpoint"),
    ],
)
def test_what_a_newcomer_forgets_or_mixes_up(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_text(RUN)
    Path("model.yaml").write_text(RUN.partition("data:")[0] + "data: null\n")
    Path("empty.ckpt").touch()
    Path("hf").mkdir()
    Path("hf/config.json").write_text("{}")
    Path("a-run").mkdir()
    Path("a-run/metrics.csv").write_text("step\n")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1, told
    assert not Path("c").exists() and not list(Path().glob("runs/*/config.yaml"))


def test_the_current_folder_is_gone(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && "
    words = shlex.join([sys.executable, "-c", "from lit_llm.cli import main; exit(main(['plan']))"])
    done = subprocess.run(["bash", "-c", script + words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "lit_llm plan: the current folder is gone: change to one that exists\n"
