"""Another encoding, closed streams, nobody who reads on, names too long, no home folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import check_mistake, config_file, fit, in_a_folder_of_its_own  # noqa: F401

from lit_llm.cli import main

# A run of the command line whose one verb does what the test says.
VERB = """
import sys
from lit_llm import cli
def verb(args):
    {body}
cli.VERBS["report"] = (verb, "")
sys.exit(cli.main(["report"]))
"""


def shell(command: str, body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``command`` with $VERB for a verb that does ``body``; pipefail is set."""
    env = {**os.environ, "PYTHON": sys.executable, "CODE": VERB.format(body=body), **variables}
    command = "set -o pipefail; " + command.replace("$VERB", '"$PYTHON" -c "$CODE"')
    return subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, check=False
    )


def test_letters_that_the_encoding_lacks() -> None:
    done = shell("$VERB", "print('caf\\u00e9 \\ud83d')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "caf? ?\n"), done.stderr


def test_json_keeps_its_letters_in_ascii(tmp_path: Path) -> None:
    body = (
        "from lit_llm.corpus.commands import corpus; print(corpus.json_text({'a': 'caf\\u00e9'}))"
    )
    done = shell("$VERB", body, PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout) == {"a": "caf\u00e9"}, done.stderr
    assert shell("$VERB", body, PYTHONIOENCODING="utf-8").stdout == '{"a": "caf\u00e9"}\n'


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    body = "print('x', flush=True); sys.stderr.write('y'); sys.stderr.flush(); sys.stdin.read()"
    assert shell(f"$VERB < /dev/null {closed}", body).returncode == 0


def test_nobody_reads_the_output() -> None:
    done = shell("$VERB | true", "[print('x' * 1000) for i in range(10_000)]")
    assert (done.returncode, done.stderr) == (141, "")


def test_nobody_reads_what_a_command_wrote(tmp_path: Path, corpus: Path) -> None:
    command = f"'{sys.executable}' -m lit_llm corpus report '{corpus}' | true"
    assert shell(command, "").returncode == 0


def test_nobody_reads_what_a_finished_fit_says(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and the report are there: it went well."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stderr", Broken())
    monkeypatch.setattr(sys, "stdout", Broken())
    # What is written later goes nowhere in a process of its own; this one's stream stays broken.
    monkeypatch.setattr(Broken, "flush", lambda self: None)
    assert main(["fit", "--config", str(config_file(tmp_path, corpus))]) == 0
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_a_stream_that_knows_nothing_of_terminals(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        def __init__(self) -> None:
            self.said = ""

        def write(self, text: str) -> None:
            self.said += text

        def flush(self) -> None: ...

    plain = Plain()
    monkeypatch.setattr(sys, "stderr", plain)
    assert main(["fit", "--config", str(config_file(tmp_path, corpus))]) == 0
    assert "step 1: validation" in plain.said


@pytest.mark.parametrize("link", [True, False])
def test_runs_is_no_folder(
    tmp_path: Path, corpus: Path, link: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    if link:
        runs.symlink_to(tmp_path / "elsewhere")
    else:
        runs.write_text("a file")
    said = "runs: is a link to" if link else "runs"
    check_mistake(*fit(config_file(tmp_path, corpus), capsys=capsys), said)


@pytest.mark.parametrize(
    "args",
    [
        ["corpus", "build", "--input", __file__, "--output", "link"],
        ["tokenizer", "train", "--files", __file__, "--output", "link"],
        ["export", "absent", "link", "--format", "hf"],
        ["export", "absent", "link", "--format", "gguf"],
        ["import", "absent", "link"],
    ],
    ids=lambda args: " ".join(args)[:30],
)
def test_an_output_that_is_a_link_to_nothing(
    tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert main(args) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "link: is a link to nowhere, which is not there" in said[0], said


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--config", "x" * 300],
        ["generate", "x" * 300, "--prompt", "y"],
        ["chat", "x" * 300],
        ["inspect", "x" * 300],
        ["report", "x" * 300],
        ["import", "x" * 300, "out"],
        ["export", "x" * 300, "out", "--format", "hf"],
        ["tokenizer", "train", "--files", "absent", "--output", "x" * 300],
        ["corpus", "report", "x" * 300],
    ],
    ids=lambda args: " ".join(args)[:30],
)
def test_names_too_long_for_a_file(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and len(said[0]) < 600, said


def test_the_longest_names_that_a_file_can_have(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is made beside them has longer names."""
    config = config_file(tmp_path, corpus).rename(tmp_path / f"{'x' * 249}.yaml")
    assert fit(config, capsys=capsys)[0] == 0
    assert (tmp_path / "runs" / ("x" * 249) / "metrics.csv").exists()
    assert main(["launch", "--slurm", "--", "fit", "--config", str(config)]) == 2
    assert "too long" in capsys.readouterr().err
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("some words of a text\n" * 40)
    args = ["tokenizer", "train", "--vocab_size", "260", "--files", str(text)]
    assert main([*args, "--output", "z" * 254]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "too long" in said, said
    # The corpus of a file is named after it.
    from lit_llm.corpus.build import cached_corpus

    long = (text / "a.txt").rename(text / f"{'a' * 250}.txt")
    found, _ = cached_corpus(tmp_path, sources=str(long), vocab_size=260)
    assert found.path.name.startswith("a" * 100 + "-")


def test_no_home_folder(tmp_path: Path) -> None:
    """As in a container with a user id that has no name."""
    code = (
        "import os, sys; os.environ.pop('HOME', None); os.environ['TMPDIR'] = sys.argv[1]\n"
        "for name in ('LIT_LLM_CACHE', 'XDG_CACHE_HOME', 'USER'): os.environ.pop(name, None)\n"
        "import pwd; del pwd\n"
        "import posixpath; real = posixpath.expanduser\n"
        "posixpath.expanduser = lambda path: real(path) if 'HOME' in os.environ else path\n"
        "from lit_llm.cli import main; assert main(['report', 'absent']) == 2\n"
        "from lit_llm.io.cache import default_cache_dir; print(default_cache_dir())\n"
        "import litdata"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/lit_llm-{os.getuid()}")
    assert "no home folder" in done.stderr


def test_a_home_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_llm.io.cache import default_cache_dir

    for name in ("LIT_LLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null/x")
    assert default_cache_dir().name == f"lit_llm-{os.getuid()}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "lit_llm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache_dir() == tmp_path / "x" / "lit_llm"
