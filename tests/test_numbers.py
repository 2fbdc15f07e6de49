"""Every number that a user can set has a range, and docs/numbers.md is the table of them all."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lit_llm
from lit_llm.cli import main
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.ranges import RANGES as BUILD
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError
from lit_llm.plan.cost import RANGES as COST
from lit_llm.plan.solve import RANGES as PLAN
from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import SAMPLING, Number, Range

TABLE = Path(__file__).parents[1] / "docs" / "numbers.md"
COMMANDS = ("plan", "evaluate", "compare", "chat", "generate", "serve",
            "serve keys create", "serve keys limit", "import", "export", "merge", "inspect",
            "report", "launch", "tokenizer train", "tokenizer inspect", "corpus remove",
            "corpus explain")  # fmt: skip
# Their constructors check, so Python and YAML get the same answer.
CLASSES = ("PretrainModule", "SFTModule", "DPOModule", "RewardModule", "PretrainDataModule",
           "InstructionDataModule", "PreferenceDataModule",
           "TransformerConfig", "LoRAConfig", "Sampling", "Checkpoint", "SpikeGuard",
           "SampleCallback", "RunReport", "ForgettingCheck", "GenerationCheck",
           "LMEvalCallback")  # fmt: skip


def numbers(cls: type) -> dict[str, Any]:
    """Arguments of a class that are numbers, with their defaults."""
    found = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        if {"int", "float"} & set(kinds):
            found[name] = parameter.default
    return found


def ranges_of(cls: type) -> dict[str, Range]:
    """Of a class and those it inherits from, as their files have them."""
    found: dict[str, Range] = dict(SAMPLING) if cls.__name__ == "Sampling" else {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("lit_llm."):
            found |= getattr(inspect.getmodule(base), "RANGES", {})
    return found


def sections() -> Iterator[tuple[str, dict[str, Any], dict[str, Range]]]:
    """Title, numbers with their defaults, ranges."""
    for command in COMMANDS:
        if actions := numeric_options(command):
            yield (
                f"`lit_llm {command}`",
                {f"--{name}": action.default for name, action in actions.items()},
                {f"--{name}": action.type.allowed if isinstance(action.type, Number)
                 else (PLAN | COST)[name] for name, action in actions.items()},
            )  # fmt: skip
    for name in CLASSES:
        cls = getattr(lit_llm, name)
        yield f"`{name}`", numbers(cls), ranges_of(cls)
    config: Any = CorpusConfig(sources=[])
    taken: dict[str, Any] = {}
    for section, cls in build_sections():
        default = config if not section else getattr(config, section)
        prefix = f"{section}." if section else ""
        taken |= {
            prefix + name: getattr(default, name, value) for name, value in numbers(cls).items()
        }
    flat = {
        (f"{s}." if s else "") + name: r for s, found in BUILD.items() for name, r in found.items()
    }
    yield "`lit_llm corpus build`", taken, flat


def build_sections() -> Iterator[tuple[str, type]]:
    """Sections of a build's configuration; switched off or not."""
    yield "", CorpusConfig
    yield "sources", Source
    module = inspect.getmodule(CorpusConfig)
    for field in dataclasses.fields(CorpusConfig):
        for word in re.findall(r"\w+", str(field.type)):
            if dataclasses.is_dataclass(cls := getattr(module, word, None)) and cls is not Source:
                yield field.name, cls


def numeric_options(command: str) -> dict[str, Any]:
    """Options of a command that take a number, as its parser has them."""
    seen: list[Parser] = []

    def keep(self: Parser, *_: Any) -> None:
        seen.append(self)
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", keep)
        arguments = ["--", "fit"] if command == "launch" else []
        assert main([*command.split(), *arguments]) == 2
    kinds = ("int", "float", "number")
    return {action.dest: action for action in seen[0]._actions
            if getattr(action.type, "__name__", None) in kinds}  # fmt: skip


def shown(value: Any) -> str:
    return "" if value in (None, inspect.Parameter.empty) else f"`{value}`"


def test_every_number_has_a_range_and_its_default_lies_in_it() -> None:
    rows = 0
    for title, taken, ranges in sections():
        assert taken, title
        for name, default in taken.items():
            assert name in ranges, f"{title}: {name} has no range"
            if isinstance(default, int | float):
                assert default in ranges[name], f"{title}: {name}={default}"
            rows += 1
    assert rows > 100
    for section, found in BUILD.items():  # no range without its setting
        names = {
            name for title, cls in build_sections() if title == section for name in numbers(cls)
        }
        assert set(found) == names, section


def test_the_table_in_the_documentation_is_the_codes() -> None:
    lines = [
        "# Ranges of all numbers", "",
        "Written by `WRITE_NUMBERS=1 pytest tests/test_numbers.py`. A number outside its range is "
        "refused before",
        "anything is made. The upper ends lie beyond what anybody means, and before what "
        "overflows.",
    ]  # fmt: skip
    for title, taken, ranges in sections():
        lines += ["", f"## {title}", "", "| setting | range | default |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {ranges[name]} | {shown(value)} |" for name, value in taken.items()
        ]
    text = "\n".join(lines) + "\n"
    if os.environ.get("WRITE_NUMBERS"):
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("generate x --max_new_tokens -1", "argument --max_new_tokens: -1 must be from 1 to "),
        ("chat x --temperature nan", "argument --temperature: nan must be from 0 to "),
        ("chat x --top_p 0", "argument --top_p: 0 must be above 0 to 1"),
        ("evaluate x --tasks a --batch_size 0", "argument --batch_size: 0 must be from 1 to "),
        ("launch --slurm --nodes 0 -- fit", "argument --nodes: 0 must be from 1 to "),
        ("tokenizer train --files a --vocab_size -1", "argument --vocab_size: -1 must be from 260 "
                                                      "to"),
        ("corpus build --input a --output b --vocab_size -1", "vocab_size=-1: must be from 260 to"),
        ("corpus build --input a --output b --workers 0", "workers=0: must be from 1 to "),
        ("corpus build --input a --output b --mixture.tokens nan", "mixture.tokens=nan: must be "),
        ("corpus build --input a --output b --dedup.threshold 2", "dedup.threshold"),
    ],
)  # fmt: skip
def test_numbers_of_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a text\n")
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_config_file_is_held_to_the_same_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("max_new_tokens: 0\n")
    assert main(["generate", "x", "--prompt", "a", "--config", str(file)]) == 2
    assert "c.yaml: max_new_tokens: 0 must be from 1 to " in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": 0}, {"rope_theta": float("nan")}, {"norm_eps": -1.0}, {"hidden_size": 10**12},
     {"router_aux_loss": -1.0}, {"max_seq_len": 0}, {"logit_softcap": 0.0}],
    ids=str,
)  # fmt: skip
def test_a_models_numbers(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(changes))}=.*: must be "):
        lit_llm.TransformerConfig(**changes)
