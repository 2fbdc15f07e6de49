"""A newcomer's mistakes and the machine's limits: one line with the key and the mend, status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lit_llm
from lit_llm.cli import main
from lit_llm.errors import UserError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's directory."""
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

    tokenizer = Tokenizer.train(["one two three über\n" * 30], 264)
    config = TransformerConfig(
        vocab_size=264, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2,
        max_seq_len=64, eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    Transformer(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder, model_max_length=64)
    return folder


def command(*args: str, prefix: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``lit_llm ARGS`` in a process of its own, behind shell words such as a limit."""
    shell = f'{prefix} exec "$@"'
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-m", "lit_llm", *args],
        capture_output=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def fit(*args: str) -> int:
    config = Path("mine.yaml")
    config.write_text(
        "model: {class_path: lit_llm.PretrainModule, init_args: {transformer: {hidden_size: 64,"
        " num_heads: 2, num_layers: 1}}}\n"
        "data: {class_path: lit_llm.PretrainDataModule, init_args: {seq_len: 32, tokens: 64,"
        " micro_batch_size: 2}}\n"
        "trainer: {accelerator: cpu, max_steps: 1, limit_val_batches: 1}\n"
    )
    return main(["fit", "--config", str(config), *args])


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for way in ("--version", "-V", "version"):
        assert main([way]) == 0
        assert capsys.readouterr().out == lit_llm.__version__ + "\n"


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_file_in_place_of_the_run_folder(
    corpus: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plain").write_text("x")
    args = ["--data.corpus", str(corpus), "--trainer.default_root_dir", f"plain{below}"]
    for more in ([], ["--ckpt_path", "last"], ["--ckpt_path", "auto"]):
        assert fit(*args, *more) == 2
        said = capsys.readouterr().err
        assert "plain is a file, not a folder; name a folder" in said, said
        assert f"trainer.default_root_dir=plain{below}" in said


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_device_that_is_not_there(
    corpus: Path,
    accelerator: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert fit("--data.corpus", str(corpus), "--trainer.accelerator", accelerator) == 2
    said = capsys.readouterr().err
    assert f"trainer.accelerator={accelerator}: " in said
    assert said.rstrip().endswith("this machine has none: set it to auto or cpu")


def test_a_limit_on_the_size_of_files(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        status = fit("--data.corpus", str(corpus))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert status == 2, said
    assert "files may have 100,000 bytes at most here: raise that limit (ulimit -f" in said
    assert "free some disk" not in said


def test_prompts_in_another_locale(model: Path) -> None:
    limits = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    args = ["generate", str(model), "--max_new_tokens", "2", "--json", "--prompt"]
    done = command(*args, "über", **limits)
    assert done.returncode == 0, done.stderr
    assert '"prompt": "über"' in done.stdout.decode()
    done = command(*args, "$'x'", prefix="set -- \"${@:1:$#-1}\" $'\\xff';", **limits)
    assert done.returncode == 2
    assert b"argument --prompt: not UTF-8: '\\udcff'" in done.stderr


def test_gguf_names_the_presets_that_can_go_there() -> None:
    import re

    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.hub.gguf.names import gguf_arch_of

    with pytest.raises(UserError, match="no GGUF architecture") as raised:
        gguf_arch_of(TransformerConfig.from_preset("nano-5m"))
    said = str(raised.value)
    assert "--config pretrain/base-135m" in said
    named = re.findall(r"model\.transformer=([\w.-]+)", said)
    assert named
    for preset in [*named, "smollm2-135m"]:  # the latter is base-135m's
        assert gguf_arch_of(TransformerConfig.from_preset(preset))


def test_fewer_tokens_than_meant_are_said(
    text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_text("one two three\n" * 40)
    assert main(["tokenizer", "train", "--files", "a.txt", "--output", "ids"]) == 0
    said = capsys.readouterr().err
    assert "the tokenizer has " in said and "not 32,768" in said and "--vocab_size sets" in said
    args = ["tokenizer", "train", "--files", "a.txt", "--output", "more", "--vocab-size", "262"]
    assert main(args) == 0
    assert "not 32,768" not in capsys.readouterr().err


def test_the_preset_samples_from_the_text_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    with pytest.raises(SystemExit):
        main(["fit", "--config", "pretrain/quickstart", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["samples"]["prompts"] is None
