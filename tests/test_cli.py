"""The command line: what it promises to start with, and one clear line for every mistake."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
import yaml

from lit_llm import cli
from lit_llm.cli import main
from lit_llm.data.files import read_prompts
from lit_llm.errors import UserError
from lit_llm.settings.presets import OF_RUNS, config_folders, find_config

BASE = {
    "model": {
        "class_path": "lit_llm.PretrainModule",
        "init_args": {"transformer": {"hidden_size": 32, "num_heads": 2}},
    },
    "data": {
        "class_path": "lit_llm.PretrainDataModule",
        "init_args": {"seq_len": 32, "micro_batch_size": 2, "tokens": 640, "vocab_size": 512},
    },
    "trainer": {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 1},
}


def config_file(folder: Path, corpus: Path | None, **changes: object) -> Path:
    """A config that works, with dotted keys replaced."""
    config = json.loads(json.dumps(BASE))
    if corpus is not None:
        config["data"]["init_args"]["corpus"] = str(corpus)
        del config["data"]["init_args"]["vocab_size"]
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def fit(config: Path | str, *args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and standard error of a fit in this process."""
    capsys.readouterr()
    status = main(["fit", "--config", str(config), *args])
    return status, capsys.readouterr().err


def test_a_torchvision_of_another_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip puts a CUDA torchvision beside a CPU torch, and every import of lightning then fails."""

    def broken(args: list[str]) -> None:
        raise RuntimeError(args[0])

    monkeypatch.setitem(cli.VERBS, "report", (broken, ""))
    assert main(["report", "operator torchvision::nms does not exist"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.endswith("pip uninstall torchvision\n")
    with pytest.raises(RuntimeError, match="another"):
        main(["report", "another"])


def check_mistake(status: int, error: str, *parts: str) -> None:
    assert status == 2, error
    lines = [line for line in error.strip().splitlines() if line.startswith("lit_llm fit: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, lit_llm, lit_llm.cli; lit_llm.cli.main(['--help']);"
        "heavy = {'torch', 'lightning', 'litdata', 'numpy', 'transformers', 'jsonargparse', "
        "'yaml'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fit" in done.stdout and "report" in done.stdout


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["fti"]) == 2
    assert "no verb 'fti'; verbs: fit" in capsys.readouterr().err


def test_every_shipped_config_parses(capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_folders()[0]
    # Those are another command's
    files = sorted(set(folder.rglob("*.yaml")) - set((folder / "corpus").iterdir()))
    assert files
    for file in files:
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", str(file), "--print_config"])
        assert not stop.value.code
        assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["seq_len"] > 0


def test_presets_by_name_from_anywhere() -> None:
    assert find_config("pretrain/quickstart", OF_RUNS).name == "quickstart.yaml"
    assert find_config("configs/pretrain/quickstart.yaml", OF_RUNS).name == "quickstart.yaml"
    with pytest.raises(UserError, match="did you mean pretrain/quickstart"):
        find_config("pretrain/quikstart", OF_RUNS)


def test_a_fit_and_what_lies_in_its_folder(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    assert fit(config, capsys=capsys)[0] == 0
    run = tmp_path / "runs" / "mine"
    for name in ("config.yaml", "metrics.csv", "report.html", "run.json", "datacard.json",
                 "final/model.safetensors", "final/tokenizer.json",
                 "checkpoints/step-00000001.ckpt"):  # fmt: skip
        assert (run / name).exists(), name
    # The default name gets a number; the resolved config runs again by itself.
    assert fit(run / "config.yaml", "--trainer.default_root_dir", "again", capsys=capsys)[0] == 0
    assert fit(config, capsys=capsys)[0] == 0
    assert (tmp_path / "runs" / "mine-2" / "metrics.csv").exists()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def main\nimport\n")
    checkpoint = str(run / "checkpoints" / "step-00000001.ckpt")
    for verb in ("validate", "test"):
        assert main([verb, "--config", str(config), "--ckpt_path", checkpoint]) == 0
        assert "bits_per_byte" in capsys.readouterr().out
    assert (
        main(
            [
                "predict",
                "--config",
                str(config),
                "--ckpt_path",
                checkpoint,
                "--data.prompts",
                str(prompts),
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["def main", "import"]
    assert main(["report", str(run)]) == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data.seq_lenn", "3"], ["unknown key", "data.seq_lenn", "seq_len"]),
        (["--trainer.max_stepz", "3"], ["unknown key", "max_stepz", "trainer.max_steps"]),
        (["--modell", "x"], ["unknown key modell", "did you mean model?"]),
        (["--data.seq_len", "many"], ["data.seq_len=many: must be a whole number"]),
        (["--data.tokens", "nan"], ["data.tokens=nan: must be a number"]),
        (["--model.attention", "foo"], ["model.attention=foo: must be sdpa or ", " or auto"]),
        (["--checkpoint.keep_last", "x"], ["checkpoint.keep_last=x: must be a whole number"]),
        (["--trainer.limit_val_batches", "x"], ["trainer.limit_val_batches=x: must be a number"]),
        (["--model.init_from", ""], ["model.init_from is empty text"]),
        (["--trainer.max_steps", "1.5"], ["trainer.max_steps", "1.5"]),
        (["--data.micro_batch_size", "0"], ["data.micro_batch_size=0: must be from 1"]),
        (
            ["--data.global_batch_tokens", "100"],
            ["data.global_batch_tokens=100", "nearest: 96 or 128"],
        ),
        (["--data.corpus", "nowhere"], ["nowhere", "no such file"]),
        (["--data.sources", "a.txt", "b.txt"], ["b.txt: belongs to no option", "in quotes"]),
        (["--data.corpus", "null", "--data.sources", "no/such/*.txt"], ["no/such/*.txt"]),
        (["--data.seq_len", "10000000"], ["data.seq_len=10000000", "longer than"]),
        (["--model.transformer", "nano-6m"], ["nano-6m", "nano-5m"]),
        (["--model.init_from", "nowhere"], ["nowhere"]),
        (["--model.schedule", "stepwise"], ["schedule", "wsd"]),
        (["--ckpt_path", "nothing.ckpt"], ["nothing.ckpt", "no such file"]),
        (["--ckpt_path", "best"], ["best: no such file", "give RUN/checkpoints/best.ckpt"]),
        (["--ckpt_path", "last"], ["nothing to resume"]),
        (["--trainer.accelerator", "cuda"], ["trainer.accelerator", "cuda"]),
        (["--trainer.accelerator", "gpuu"], ["gpuu"]),
        (["--trainer.devices", "0"], ["trainer.devices"]),
    ],
)
def test_mistakes_in_arguments(
    tmp_path: Path,
    corpus: Path,
    arguments: list[str],
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_mistake(*fit(config_file(tmp_path, corpus), *arguments, capsys=capsys), *parts)
    assert not list(tmp_path.glob("runs/*/metrics.csv"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data__init_args__sequence": 4}, ["unknown key", "sequence"]),
        (
            {"model__init_args__transformer__hiden_size": 4},
            ["unknown key transformer.hiden_size", "hidden_size"],
        ),
        ({"trainer__max_step": 4}, ["unknown key", "max_step", "trainer.max_steps"]),
        ({"modle": {"class_path": "lit_llm.PretrainModule"}}, ["unknown key modle", "model"]),
        ({"checkpoint__every": 4}, ["unknown key", "checkpoint.every"]),
        ({"model__class_path": "lit_llm.PretrainModul"}, ["lit_llm.PretrainModul"]),
        ({"data__init_args__tokens": "lots"}, ["tokens", "lots"]),
        ({"model__init_args__transformer__num_heads": 5}, ["num_heads=5"]),
        ({"model__init_args__transformer__vocab_size": 100}, ["vocab_size=100", "too small"]),
        ({"model__init_args__transformer__max_seq_len": 16}, ["data.seq_len=32", "max_seq_len=16"]),
    ],
)
def test_mistakes_in_the_file(
    tmp_path: Path,
    corpus: Path,
    changes: dict,
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_mistake(*fit(config_file(tmp_path, corpus, **changes), capsys=capsys), *parts)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("r", "rank"), ("lora_alpha", "alpha"), ("target_modules", "targets"), ("use_dora", "dora")],
)
def test_names_of_peft(
    tmp_path: Path, theirs: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"PEFT's name of model.lora.{ours}"
    preset = "finetune/sft-lora"
    check_mistake(*fit(preset, f"--model.lora.{theirs}", "8", capsys=capsys), said)
    (tmp_path / "more.yaml").write_text(f"model: {{init_args: {{lora: {{{theirs}: 8}}}}}}\n")
    check_mistake(*fit(preset, "--config", "more.yaml", capsys=capsys), said)


def test_a_group_of_settings_as_one_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "model.lora={}: must be a mapping of its settings, or null"
    for value in ("true", "16"):
        check_mistake(
            *fit("finetune/sft-lora", "--model.lora", value, capsys=capsys), said.format(value)
        )
    (tmp_path / "more.yaml").write_text("model: {init_args: {lora: true}}\n")
    check_mistake(
        *fit("finetune/sft-lora", "--config", "more.yaml", capsys=capsys), said.format("True")
    )


@pytest.mark.parametrize("text", ["data: {seq_len: 3", "- a\n- b\n", "", "a: b: c\n", "\x00"])
def test_broken_yaml(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    check_mistake(*fit("broken.yaml", capsys=capsys), "broken.yaml")


def test_no_text_in_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "bad" / "b.txt").write_text("")
    config = config_file(tmp_path, None, data__init_args__sources=str(tmp_path / "bad"))
    check_mistake(*fit(config, capsys=capsys), "bad")


def test_vocabulary_the_text_does_not_support(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small").mkdir()
    for i in range(30):
        (tmp_path / "small" / f"{i}.txt").write_text(f"a few words number {i}\n" * 20)
    config = config_file(
        tmp_path, None, data__init_args__sources="small", data__init_args__vocab_size=50_000
    )
    check_mistake(*fit(config, capsys=capsys), "vocab_size")


def test_a_full_disk_loses_nothing(
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = torch.save, []

    def full(state: object, file: BinaryIO) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    config = config_file(
        tmp_path, corpus, checkpoint__every_steps=1, trainer__max_steps=3, checkpoint__monitor=None
    )
    check_mistake(
        *fit(config, capsys=capsys), "No space left", "step-00000002", "step-00000001.ckpt"
    )
    assert [f.name for f in (tmp_path / "runs/mine/checkpoints").iterdir()] == [
        "step-00000001.ckpt"
    ]
    assert (tmp_path / "runs/mine/report.html").exists()
    assert fit(config, "--ckpt_path", "last", capsys=capsys)[0] == 0


def test_trainer_switches_reach_our_callbacks(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    status, error = fit(
        config,
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_checkpointing",
        "false",
        capsys=capsys,
    )
    assert status == 0, error
    assert not (tmp_path / "runs" / "mine" / "checkpoints").exists()
    bar = {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}
    status, error = fit(config_file(tmp_path, corpus, trainer__callbacks=[bar]), capsys=capsys)
    assert status == 0, error


def test_evaluating_random_weights_or_no_checkpoint_is_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    assert main(["validate", "--config", str(config)]) == 2
    assert "weights would be random" in capsys.readouterr().err
    (tmp_path / "junk.ckpt").write_bytes(b"not a checkpoint")
    check_mistake(*fit(config, "--ckpt_path", "junk.ckpt", capsys=capsys), "not a checkpoint")


def test_the_quickstart_preset_runs_from_any_folder(
    tmp_path: Path, lit_llm_command: Callable
) -> None:
    done = lit_llm_command("fit", "--config", "pretrain/quickstart", "--trainer.max_steps", "2",
                           "--trainer.limit_val_batches", "2", "--model.compile", "false",
                           cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "pretrain-quickstart" / "report.html").exists()
    again = lit_llm_command("fit", "--config", "pretrain/quickstart", "--trainer.max_steps", "2",
                            "--trainer.limit_val_batches", "2", "--model.compile", "false",
                            cwd=tmp_path)  # fmt: skip
    assert "reusing corpus and tokenizer" in again.stderr + again.stdout
    assert (tmp_path / "runs" / "pretrain-quickstart-2" / "report.html").exists()


def test_a_checkpoint_that_cannot_continue_this_run_is_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    assert fit(config, capsys=capsys)[0] == 0
    checkpoint = str(next((tmp_path / "runs/mine/checkpoints").glob("step-*.ckpt")))
    adamw = fit(config, "--ckpt_path", checkpoint, "--model.optimizer", "adamw", capsys=capsys)
    check_mistake(*adamw, "model.optimizer was muon_adamw", "adamw now")
    content = torch.load(checkpoint, weights_only=False)
    content["hyper_parameters"] = {}
    torch.save(content, "foreign.ckpt")
    check_mistake(
        *fit(config, "--ckpt_path", "foreign.ckpt", capsys=capsys),
        "not a checkpoint of lit_llm.PretrainModule or SFTModule",
    )


def test_the_same_tokens_elsewhere_continue_a_run(
    tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, None, data__init_args__sources=str(tmp_path / "here"))
    # Other modification times
    shutil.copytree(text_folder, tmp_path / "here", copy_function=shutil.copyfile)
    assert fit(config, capsys=capsys)[0] == 0
    (tmp_path / "here").rename(tmp_path / "gone")
    shutil.copytree(tmp_path / "gone", tmp_path / "here", copy_function=shutil.copyfile)
    assert fit(config, "--ckpt_path", "last", "--trainer.max_steps", "2", capsys=capsys)[0] == 0
    (tmp_path / "here" / "new.py").write_text("x = 1\n" * 50)
    check_mistake(*fit(config, "--ckpt_path", "last", capsys=capsys), "data.corpus was")


def test_last_is_the_newest_run_even_if_it_has_no_checkpoint(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus)
    assert fit(config, capsys=capsys)[0] == 0
    killed = tmp_path / "runs" / "mine-2"
    killed.mkdir()
    (killed / "config.yaml").write_text("{}")
    check_mistake(*fit(config, "--ckpt_path", "last", capsys=capsys), "nothing to resume", "mine-2")


@pytest.mark.parametrize("name", ["exp[lr=3]", "exp[1-3]*"])
def test_last_of_a_name_that_looks_like_a_pattern(
    tmp_path: Path, corpus: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, corpus).rename(tmp_path / f"{name}.yaml")
    (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)  # an older run
    (tmp_path / "runs" / name / "config.yaml").write_text("{}")
    assert fit(config, capsys=capsys)[0] == 0
    status, error = fit(config, "--ckpt_path", "last", "--trainer.max_steps", "2", capsys=capsys)
    assert status == 0, error
    rows = (tmp_path / "runs" / f"{name}-2" / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("2,") and not (tmp_path / "runs" / name / "metrics.csv").exists()


def test_a_mistake_leaves_no_run_folder(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config_file(tmp_path, corpus), "--data.seq_len", "10000000", capsys=capsys)[0] == 2
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("made", [False, True])
def test_a_mistake_leaves_a_folder_that_was_named_as_it_was(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], made: bool
) -> None:
    run = tmp_path / "mine"
    if made:
        run.mkdir()
    args = [config_file(tmp_path, corpus), "--trainer.default_root_dir", str(run)]
    assert fit(*args, "--data.seq_len", "10000000", capsys=capsys)[0] == 2
    assert run.exists() is made and not (made and list(run.iterdir()))
    assert fit(*args, capsys=capsys)[0] == 0 and (run / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeffone\r\ntwo\n"),
        ("a.jsonl", '\ufeff{"prompt": "one"}\n\n{"prompt": "two"}\n'),
        ("a.ndjson", '{"prompt": "one"}\n{"prompt": "two"}\n'),
        ("a.json", '\ufeff["one",\n {"prompt": "two"}]'),
    ],
)
def test_prompts_of_every_kind_of_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert [prompt.strip() for prompt in read_prompts(tmp_path / name)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "said"),
    [('["one", 2]', "element 2"), ('{"prompt": "x"}', "not an array"), ("[", "not valid JSON"),
     ("[" * 100_000, "not valid JSON")],
)  # fmt: skip
def test_an_array_of_something_else(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_prompts(tmp_path / "a.json")


def test_prompts_that_are_no_text_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one\\u2028still one"}\n\n{"prompt": 3}\n')
    with pytest.raises(UserError, match="line 3: neither a text"):
        read_prompts(file)
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="line 1: not a JSON object"):
        read_prompts(file)
    file.write_text('{"prompt": "one\u2028still one"}\n', encoding="utf-8")
    assert read_prompts(file) == ["one\u2028still one"]


@pytest.mark.parametrize(
    ("chats", "first"), [(True, "lit_llm chat {}/final"), (False, "lit_llm generate {}/final")]
)
def test_a_fit_ends_with_what_can_be_done_next(tmp_path: Path, chats: bool, first: str) -> None:
    from lit_llm.fit.command import summary

    (tmp_path / "final").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000005.ckpt").touch()
    said = summary(tmp_path, {"val_bits_per_byte": 1.5, "val_loss": 3.0}, chats=chats).splitlines()
    assert said[1] == "validation: 1.5000 bits per byte, loss 3.0000"
    following = [line.strip() for line in said[said.index("next:") + 1 :]]
    assert following[0].startswith(first.format(tmp_path))
    assert any(line.startswith(f"lit_llm generate {tmp_path}/final") for line in following)
    assert any(line.startswith("lit_llm fit") for line in following) is not chats


def test_a_fit_says_of_which_step_its_model_is(tmp_path: Path) -> None:
    from lit_llm.fit.command import summary

    (tmp_path / "final").mkdir()
    state = tmp_path / "final" / "trainer_state.json"
    for last, said in ((1900, ", of step 1,200; the last one is 1,900)"), (1200, "directory)")):
        state.write_text(json.dumps({"global_step": 1200, "last_step": last}))
        line = next(line for line in summary(tmp_path, {}).splitlines() if "model:" in line)
        assert line.endswith(said)


def test_commands_to_copy_are_quoted(tmp_path: Path) -> None:
    from lit_llm.fit.command import summary

    run = tmp_path / "it's [1]"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000005.ckpt").touch()
    (run / "final").mkdir()
    lines = summary(run, {}).splitlines()
    generate = next(line for line in lines if line.strip().startswith("lit_llm generate"))
    assert shlex.split(generate)[2] == f"{run}/final"
    more = next(line for line in lines if line.strip().startswith("lit_llm fit"))
    assert shlex.split(more)[3:6:2] == [f"{run}/config.yaml", f"{run}/final"]
