"""Every command that a verb prints works as it is printed, in folders with spaces and other
signs."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lit_llm.cli import main

Run = Callable[..., list[str]]
FEW_STEPS = {
    "pretrain/quickstart": [
        "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--model.compile", "false",
        "--data.tokens", "8192", "--samples.max_new_tokens", "4",
    ]
}  # fmt: skip
"""What is added to a printed fit of a preset, so that it takes seconds."""


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command that must succeed; gives the commands that it prints."""
    folder = tmp_path / "it's a & b [1]"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*args: str) -> list[str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        status = main(list(args))
        out, err = capsys.readouterr()
        assert status == 0, f"{args}\n{out}\n{err}"
        return [line.strip() for line in f"{out}\n{err}".splitlines() if _is_command(line)]

    return run


def _is_command(line: str) -> bool:
    return re.match(r"\s*lit_llm [a-z]", line) is not None and "lit_llm fit:" not in line


def words(command: str) -> list[str]:
    """The arguments behind ``lit_llm``, as a shell makes them, with what keeps a preset's fit
    short."""
    found = shlex.split(command)[1:]
    for preset, more in FEW_STEPS.items():
        found += more if preset in found else []
    return found


def config_file(name: str, model: dict, data: dict) -> str:
    trainer = {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 1}
    samples = {"max_new_tokens": 4}
    content = {"model": model, "data": data, "trainer": trainer, "samples": samples}
    Path(name).write_text(yaml.safe_dump(content))
    return name


def pretraining(**data: object) -> str:
    shape = {"hidden_size": 32, "num_heads": 2, "num_layers": 1}
    return config_file(
        "pre train.yaml",
        {"class_path": "lit_llm.PretrainModule", "init_args": {"transformer": shape}},
        {
            "class_path": "lit_llm.PretrainDataModule",
            "init_args": {"seq_len": 64, "micro_batch_size": 2, "tokens": 128, **data},
        },
    )


def test_after_a_corpus_and_a_tokenizer(run: Run, text_folder: Path) -> None:
    Path("my texts").symlink_to(text_folder)
    printed = run(
        "corpus", "build", "--input", "my texts/b*.py", "--output", "my corpus",
        "--vocab_size", "300", "--gopher_repetition", "null", "--privacy", "null",
        "--dedup.threshold", "null",
    )  # fmt: skip
    assert [shlex.split(line)[1] for line in printed] == ["tokenizer", "fit"]
    for line in printed:
        for following in run(*words(line)):
            run(*words(following))
    run("tokenizer", "train", "--corpus", "my corpus", "--vocab_size", "280", "--output", "my ids")
    run("plan", "--params", "1B", "--tokens", "1B")


@pytest.mark.parametrize("of", ["sources", "corpus"])
def test_after_pretraining_again_and_again(run: Run, corpus: Path, of: str) -> None:
    Path("my corpus").symlink_to(corpus)
    Path("some text").mkdir()
    Path("some text/a.txt").write_text("one two three four five\n" * 60)
    Path("some text/b.txt").write_text("five four three two one\n" * 60)
    given = (
        {"corpus": "my corpus"} if of == "corpus" else {"sources": "some text", "vocab_size": 261}
    )
    printed = run("fit", "--config", pretraining(**given))
    assert [shlex.split(line)[1] for line in printed] == ["generate", "fit"]
    for line in printed:
        for following in run(*words(line)):
            run(*words(following))
    # A free folder is named each time.
    again = run("fit", "--config", "pre train.yaml", "--trainer.default_root_dir", "runs/x")
    assert run(*words(again[1]))
    assert run("report", "runs/x") == []


@pytest.mark.parametrize("name", ["-dash", "two\nlines", '$HOME `id` "x"'])
def test_after_a_run_in_a_folder_with_an_odd_name(run: Run, corpus: Path, name: str) -> None:
    from lit_llm.fit.command import summary

    given = f"--trainer.default_root_dir={name}"
    run("fit", "--config", pretraining(corpus=str(corpus)), given)
    printed = summary(Path(name), {}, own_tokenizer=False).partition("next:\n")[2]
    commands = [f"lit_llm {part}" for part in printed.split("  lit_llm ")[1:]]
    assert [shlex.split(line)[1] for line in commands] == ["generate", "fit"]
    for line in commands:
        run(*words(line.partition("\n  the last one")[0]))
    run("export", f"./{name}/final", "my export", "--format", "hf")


def test_evaluate_predict_and_launch(run: Run, corpus: Path) -> None:
    config = pretraining(corpus=str(corpus))
    run("fit", "--config", config, "--trainer.default_root_dir", "my run")
    Path("my prompts.txt").write_text("one\ntwo\n")
    saved = ["--config", "my run/config.yaml", "--ckpt_path", "last"]
    assert run("predict", *saved, "--data.prompts", "my prompts.txt") == []
    assert len(Path("my run/predictions.jsonl").read_text().splitlines()) == 2
    run("launch", "--slurm", "--output", "-job & one.sbatch", "--", "fit", "--config", config)
    assert Path("-job & one.sbatch").exists()
    run("evaluate", "my run/final", "--tasks", "stdlib_choice", "--limit", "2")


def test_after_finetuning(run: Run, corpus: Path) -> None:
    run("fit", "--config", pretraining(corpus=str(corpus)), "--trainer.default_root_dir", "my base")
    rows = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(12)]
    Path("my rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuning = config_file(
        "tune.yaml",
        {
            "class_path": "lit_llm.SFTModule",
            "init_args": {"init_from": "my base/final", "lora": {"rank": 2, "alpha": 4}},
        },
        {
            "class_path": "lit_llm.InstructionDataModule",
            "init_args": {"sources": "my rows.jsonl", "seq_len": 64, "micro_batch_size": 2},
        },
    )
    printed = run("fit", "--config", tuning)
    assert [shlex.split(line)[1] for line in printed] == ["chat", "generate"]
    for line in printed:
        assert run(*words(line)) == []
    run("export", "runs/tune/final", "my export", "--format", "hf")


def test_a_saved_config_works_from_another_folder(
    run: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("my corpus").symlink_to(corpus)
    run("fit", "--config", pretraining(corpus="my corpus"))
    saved = Path("runs/pre train/config.yaml").absolute()
    data = yaml.safe_load(saved.read_text())["data"]["init_args"]
    assert data["corpus"] == str(Path("my corpus").absolute()) and data["sources"] is None
    monkeypatch.chdir(tmp_path)
    run("validate", "--config", str(saved), "--ckpt_path", "last")
    run("fit", "--config", str(saved), "--ckpt_path", "last", "--trainer.max_steps", "2",
        "--data.tokens", "256")  # fmt: skip
    assert (saved.parent / "checkpoints" / "step-00000002.ckpt").exists()
    assert not Path("runs").exists()


def test_the_command_in_a_report_is_quoted() -> None:
    from lit_llm.report.callback import _quoted

    assert list(map(_quoted, ["--data.sources", "my texts/*.txt", "--data.corpus=a b", "fit"])) == [
        "--data.sources", "'my texts/*.txt'", "--data.corpus='a b'", "fit",
    ]  # fmt: skip
