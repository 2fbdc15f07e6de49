"""Parser: one-line mistakes, config files, --print_config."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_llm.errors import UserError
from lit_llm.settings.arguments import Parser


def parser() -> Parser:
    made = Parser(prog="lit_llm test")
    made.add_argument("ckpt", type=Path)
    made.add_argument("--seed", type=int, default=3)
    made.add_argument("--rate", type=float)
    made.add_argument("--prompt", action="append", default=[])
    made.add_argument("--tasks", nargs="+", required=True)
    made.add_argument("--json", action="store_true")
    made.add_argument("--dtype", choices=["a", "b"])
    return made


def config(folder: Path, **values: object) -> list[str]:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", str(file)]


def test_command_line_wins_over_file_over_defaults(tmp_path: Path) -> None:
    file = config(tmp_path, ckpt="x", seed=5, rate=1, prompt=["one", "two"], tasks="t", json=True)
    got = vars(parser().parse_args(file))
    expected = {
        "ckpt": Path("x"),
        "seed": 5,
        "rate": 1.0,
        "prompt": ["one", "two"],
        "tasks": ["t"],
        "json": True,
    }
    assert got == {**expected, "dtype": None}
    # Of two files the later one wins; the order of files and options does not matter.
    (tmp_path / "more.yaml").write_text("seed: 7")
    for args in (
        [*file, "--config", str(tmp_path / "more.yaml"), "--rate", "2"],
        ["--rate", "2", *file, f"-c={tmp_path / 'more.yaml'}"],
    ):
        both = parser().parse_args(args)
        assert (both.ckpt, both.seed, both.rate) == (Path("x"), 7, 2.0)
    # A value equal to the default still wins, and a list replaces the file's.
    got = vars(
        parser().parse_args(["y", "--seed", "3", "--prompt", "three", "--tasks", "u", "v", *file])
    )
    assert (got["ckpt"], got["seed"], got["prompt"], got["tasks"]) == (
        Path("y"),
        3,
        ["three"],
        ["u", "v"],
    )
    assert vars(parser().parse_args(["y", "--tasks", "u"]))["seed"] == 3


def test_printed_config_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["x", "--tasks", "a", "b", "--json", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    got = parser().parse_args(config(tmp_path, **yaml.safe_load(printed)))
    assert (got.ckpt, got.tasks, got.json, got.seed, got.prompt) == (
        Path("x"),
        ["a", "b"],
        True,
        3,
        [],
    )
    with pytest.raises(SystemExit):
        parser().parse_args(["--print_config"])  # what is required may be missing here
    assert yaml.safe_load(capsys.readouterr().out)["ckpt"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x", "--tasks", "t", "--sead", "1"], "unknown option --sead: did you mean --seed"),
        (["x", "--tasks", "t", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--tasks", "t"], "required: ckpt"),
        (["x"], "required: --tasks"),
        (["x", "--tasks", "t", "--config", "absent.yaml"], "--config absent.yaml: cannot be read"),
        (["x", "--tasks", "t", "--config"], "--config: give a file"),
    ],
)
def test_mistakes_on_the_command_line(args: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parser().parse_args(args)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "unknown key sead: did you mean seed"),
        ({"seed": "one"}, "seed must be int, got 'one'"),
        ({"seed": True}, "seed must be int, got True"),
        ({"json": "yes"}, "json must be true or false"),
        ({"prompt": [{"a": 1}]}, "prompt must be a list of str"),
        ({"dtype": "c"}, "dtype is one of a, b"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parser().parse_args(["x", "--tasks", "t", *config(tmp_path, **values)])
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UserError, match="holds no settings"):
        parser().parse_args(["x", "--tasks", "t", "--config", str(tmp_path / "list.yaml")])


def test_hyphens_for_underscores() -> None:
    from lit_llm.cli import main

    assert main(["plan", "--params", "1e9", "--total-params", "2e9", "--tokens-per-param=20"]) == 0


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--data.seq-len", "--data.seq_len"),
        ("--data.seq-len=8", "--data.seq_len=8"),
        ("--prompt=--total-params", "--prompt=--total-params"),
        ("--data.mixture.my-texts=1", "--data.mixture.my-texts=1"),
        ("--data.init-args.sources.a-b", "--data.init_args.sources.a-b"),
        ("--trainer.callbacks+=a-b", "--trainer.callbacks+=a-b"),
        ("--trainer.logger.dict-kwargs.a-b=1", "--trainer.logger.dict_kwargs.a-b=1"),
        ("--trainer.logger.tags.a-b=1", "--trainer.logger.tags.a-b=1"),
        ("a-value", "a-value"),
        ("-1e-3", "-1e-3"),
    ],
)
def test_only_options_are_spelled_anew(given: str, read: str) -> None:
    from lit_llm.settings.arguments import with_underscores

    assert with_underscores([given, "--", "--a-b"]) == [read, "--", "--a-b"]


def test_hyphens_reach_every_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse's, the Trainer's, the corpus builder's, and the command within a job file."""
    from lit_llm.cli import main

    monkeypatch.chdir(tmp_path)
    for args, said in (
        (["generate", "absent", "--max-new-tokens", "x"], "argument --max_new_tokens: invalid int"),
        (["chat", "absent", "--max-new-tokenz", "x"], "unknown option --max_new_tokenz"),
        (["evaluate", "absent", "--tasks", "a", "--num-fewshot", "-1"], "argument --num_fewshot: "
                                                                        "-1 must be"),
        (["fit", "--trainer.max-steps", "x"], "trainer.max_steps"),
        (["fit", "--ckpt-path", "absent", "--config", "pretrain/quickstart"], "--ckpt_path absent"),
        (["corpus", "build", "--vocab-size", "x"], "vocab_size"),
        (["corpus", "build", "--vocab_siz", "300"], "unknown key vocab_siz"),
        (["tokenizer", "train", "--sample-mb", "0", "--files", "a"], "argument --sample_mb: 0 "
                                                                     "must be"),
        (["launch", "--slurm", "--", "fit", "--trainer.num-nodes", "2"], "--trainer.num_nodes"),
    ):  # fmt: skip
        assert main(args) == 2, args
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1, (args, error)
