"""What the README and docs/ show works: code blocks, commands, plans, paths, names of tests, the
API reference.

A code block whose info string has a ``title="needs ..."`` (a GPU, a network, your package) is only
parsed.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import lit_llm
from lit_llm.cli import VERBS, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {DOCS / "numbers.md", DOCS / "families.md"}  # by tests of their own
LAB_BOOK = {DOCS / "decisions.md", *(DOCS / "labbook").glob("*.md")}
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")} - MADE - LAB_BOOK
)
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Code:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def code(*languages: str) -> list[Code]:
    """The blocks of all pages in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            language, info, body = match.groups()
            if language in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Code(page, line, language, body, 'title="needs' not in info))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder in which the files that the pages name are there, as tiny ones."""
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.hub.adapters import save_adapter
    from lit_llm.models.lora import LoRAConfig, apply_lora
    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

    folder = tmp_path_factory.mktemp("docs")
    (folder / "books").mkdir()
    for file in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        shutil.copy(file, folder / "books" / f"{file.stem}.txt")
    tokenizer = Tokenizer.from_pretrained(corpus / "tokenizer")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2, max_seq_len=128
    )
    model = Transformer(config)
    for name in ("path/to/Qwen3-0.6B", "tokenizers/mine"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lora = LoRAConfig(rank=2, alpha=4)
    apply_lora(model, lora)
    for name in ("law", "medicine"):
        save_adapter(model, folder / "adapters" / name, "path/to/Qwen3-0.6B")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "metrics.csv").write_text("step,mfu\n1,0.4\n")
    shutil.copy(ROOT / "configs" / "pretrain" / "quickstart.yaml", folder / "pretrain.yaml")
    shutil.copy(ROOT / "configs" / "corpus" / "web.yaml", folder / "corpus.yaml")
    for block in code("python", "yaml"):  # one that begins with "# name.py" is that file
        if name := re.match(r"# ([\w-]+\.(?:py|yaml))\n", block.text):
            (folder / name[1]).write_text(block.text, encoding="utf-8")
    return folder


@pytest.fixture
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    return place


# ---- Python


class FewSteps(L.Trainer):
    """The Trainer of a page, for two steps on the CPU."""

    def __init__(self, **settings: Any):
        few = {
            "max_steps": 2,
            "limit_val_batches": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        }
        super().__init__(**settings, **few)


@pytest.mark.parametrize(
    "page", sorted({block.page for block in code("python")}), ids=lambda page: page.name
)
def test_python_blocks_of_a_page_run_in_their_order(
    page: Path, in_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L, "Trainer", FewSteps)
    monkeypatch.setattr("lit_llm.training.prepare.can_compile", lambda device: False)
    names: dict[str, Any] = {}
    for block in code("python"):
        if block.page == page:
            program = compile(block.text, str(block), "exec")
            if block.runs:
                torch.manual_seed(0)
                exec(program, names)


# ---- Commands


def commands(block: Code) -> Iterator[list[str]]:
    """The arguments of each lit_llm in a block of shell, whatever starts it."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("#!") or (block.language == "console" and not line.startswith("$ ")):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for at, word in enumerate(words[:-1]):
            if word == "lit_llm" and words[at + 1] in VERBS:
                yield words[at + 1 :]
                break


def run(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("block", code("bash", "console"), ids=str)
def test_commands_are_understood(
    block: Code, in_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prints its configuration, or, as a plan, its answer."""
    for words in commands(block):
        if words[0] != "plan":
            at = words.index("--") if "--" in words else len(words)
            words = [*words[:at], "--print_config", *words[at:]]
        assert run(words) == 0, (words, capsys.readouterr().err)
        assert capsys.readouterr().out


def plans() -> list[Code]:
    return [block for block in code("console") if block.text.startswith("$ lit_llm plan")]


@pytest.mark.parametrize("block", plans(), ids=str)
def test_plans_are_what_the_command_prints(
    block: Code, in_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, shown = block.text.partition("\n")
    assert run(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out.rstrip("\n") == shown.rstrip("\n")


@pytest.mark.parametrize("block", code("yaml"), ids=str)
def test_yaml_blocks_are_settings(
    block: Code, in_place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(block.text)
    if not block.runs:
        return
    file = tmp_path / "shown.yaml"
    file.write_text(block.text, encoding="utf-8")
    verb = ["corpus", "build"] if isinstance(settings.get("sources"), list) else ["fit"]
    base = ["--config", "pretrain/quickstart"] if verb == ["fit"] else []
    if verb == ["fit"] and {"model", "data"} <= settings.keys():
        base = []
    assert run([*verb, *base, "--config", str(file), "--print_config"]) == 0, (
        capsys.readouterr().err
    )


# ---- Recipes


@pytest.mark.parametrize(
    "page", sorted((DOCS / "recipes").glob("[0-9]*.md")), ids=lambda page: page.name
)
def test_a_recipe_shows_its_config_file_and_its_plan(page: Path) -> None:
    shown = [block for block in code("yaml") if block.page == page]
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "configs").rglob("*.yaml")]
    assert len(shown) == 1 and shown[0].text in files
    assert [block for block in plans() if block.page == page]


# ---- Names


def names(pattern: str, pages: set[Path]) -> Iterator[tuple[str, str]]:
    for page in sorted(pages):
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for found in re.findall(pattern, line):
                yield f"{page.relative_to(ROOT)}:{number}", found


def test_paths_of_the_repository_are_there() -> None:
    pattern = r"(?<![\w/.-])(?:lit_llm|tests|benchmarks|configs|docs)/[\w/.-]+"
    there = [*ROOT.glob("lit_llm/**/*")]
    for where, path in names(pattern, {*PAGES, *LAB_BOOK}):
        path = path.rstrip(".")
        made = path.endswith(".html")
        assert made or (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), (where, path)
    # The lab book leaves the package's own name out: `models/hub/families.py`.
    for where, path in names(r"`([\w]+/[\w/]+\.py)", {*PAGES, *LAB_BOOK}):
        inside = any(str(file).endswith(f"/{path}") for file in there)
        assert inside or (ROOT / path).exists(), (where, path)


def test_tests_that_are_named_are_there() -> None:
    found = 0
    for where, name in names(r"tests/[\w/]+\.py::\w+", set(PAGES)):
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, where
        found += 1
    assert found


def slug(title: str) -> str:
    """The anchor that GitHub and the site give a title; they differ in dots and the like."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[`*]", "", title.lower())).strip("-")


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those within docs/ are the site's own to check: ``make docs``."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for _, link in names(r"\]\(([^)\s]+)\)", {page}):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = ROOT / path if path else page
            assert target.exists(), (page, link)
            if anchor:
                text = target.read_text(encoding="utf-8")
                titles = re.findall(r"^#+ (.+)$", text, re.M)
                assert slug(anchor) in {slug(title) for title in titles}, (page, link)


def test_everything_that_is_exported_is_in_the_reference() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in (DOCS / "reference").glob("*.md"))
    missing = {
        name for name, module in lit_llm._EXPORTS.items() if f"::: {module}.{name}\n" not in text
    }
    assert not missing


def test_the_lab_book_lists_its_entries() -> None:
    index = (DOCS / "decisions.md").read_text(encoding="utf-8")
    for page in (DOCS / "labbook").glob("*.md"):
        for title in re.findall(r"^### (.+)$", page.read_text(encoding="utf-8"), re.M):
            assert f"- [{title}](labbook/{page.name}#" in index, f"{page.name}: {title}"


def test_the_site_is_no_dependency_of_the_product() -> None:
    for file in ("pyproject.toml", "requirements.lock"):
        assert "mkdocs" not in (ROOT / file).read_text(encoding="utf-8")


def settings_of(config: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Dotted keys of a fit's whole configuration, as the command line writes them."""
    assert run(["fit", "--config", config, "--print_config"]) == 0
    found: set[str] = set()

    def walk(value: Any, key: str) -> None:
        found.add(key)
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, key if name == "init_args" else f"{key}.{name}".lstrip("."))

    walk(yaml.safe_load(capsys.readouterr().out), "")
    return found


def test_settings_that_pages_name_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    known = settings_of("pretrain/quickstart", capsys)
    for preset in ("finetune/quickstart", "finetune/dpo", "finetune/reward"):
        known |= settings_of(preset, capsys)
    pattern = r"`(?:--)?((?:data|model|trainer|checkpoint|spike_guard)\.[a-z0-9_.-]+)"
    # There the Trainer is an object of Python.
    pages = set(PAGES) - {DOCS / "lightning.md"}
    for where, key in names(pattern, pages):
        assert key.replace("-", "_").rstrip("._") in known, (where, key)
