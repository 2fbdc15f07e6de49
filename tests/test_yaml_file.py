"""YAML from anybody: what would hang or say one thing twice is refused, by every verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.settings.presets import config_folders

BOMB = "a0: &a0 [1, 2]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "bomb": (BOMB, "its aliases stand for"),
    "itself": ("data: &d\n  sources: *d\n", "line 1: an anchor holds itself"),
    "merged": ("data: &d\n  <<: *d\n", "an anchor holds itself"),
    "deep": ("data: " + "[" * 20_000, "more than 100 levels"),
    "twice": ("seed: 1\ndata: {}\nseed: 2\n", "line 3: the key seed is there already, in line 1"),
    "twice below": ("data: {corpus: a, corpus: b}\n", "the key corpus is there already, in line 1"),
    "date": ("seed: 2026-13-45\n", "broken YAML"),
}
VERBS = {
    "fit": ["fit"],
    "corpus": ["corpus", "build", "--output", "made"],
    "generate": ["generate"],
    "plan": ["plan"],
    "tokenizer": ["tokenizer", "train"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_by_every_verb(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = HOSTILE[kind]
    Path("mine.yaml").write_text(text)
    assert main([*VERBS[verb], "--config", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert "mine.yaml" in error and said in error and "Traceback" not in error


@pytest.mark.parametrize("kind", ["bomb", "itself", "deep", "twice"])
def test_hostile_yaml_in_a_section_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = HOSTILE[kind]
    Path("data.yaml").write_text(text)
    Path("mine.yaml").write_text("model: lit_llm.PretrainModule\ndata: data.yaml\n")
    assert main(["fit", "--config", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error, error


def test_aliases_in_moderation_and_every_preset(tmp_path: Path) -> None:
    from lit_llm.settings.yaml_file import read_yaml

    (tmp_path / "fine.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, x: 2}\n")
    assert read_yaml(tmp_path / "fine.yaml") == {
        "a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 2},
    }  # fmt: skip
    files = list(config_folders()[0].rglob("*.yaml"))
    assert files and all(isinstance(read_yaml(file), dict) for file in files)
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")
