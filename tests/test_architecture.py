"""Imports point one way, and models/ can be lifted out."""

from __future__ import annotations

import ast
from pathlib import Path

import lit_llm

PACKAGE = Path(lit_llm.__file__).parent
# What each package may import of the others; all may import what is shared.
SHARED = {"errors", "checks", "arguments", "cache", "presets", "ranges", "replaced_settings", "shell", "streams",
          "yaml_file", "pages"}  # fmt: skip
ARROWS = {
    "models": set(),
    "corpus": {"models"},
    "data": {"corpus", "models"},
    "training": {"data", "corpus", "models"},
    "report": {"training", "data", "corpus", "models"},
    "evaluate": {"training", "data", "corpus", "models"},
    "terminal": {"data", "corpus", "models"},
    "plan": {"models"},
}


def imports(file: Path) -> set[str]:
    """Full names of everything ``file`` imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_arrows() -> None:
    for package, allowed in ARROWS.items():
        files = list((PACKAGE / package).rglob("*.py"))
        assert files, package
        for file in files:
            inner = {name.split(".")[1] for name in imports(file) if name.startswith("lit_llm.")}
            assert inner <= allowed | SHARED | {package}, (file, inner)


def test_models_never_import_lightning() -> None:
    for file in (PACKAGE / "models").rglob("*.py"):
        assert not {
            n
            for n in imports(file)
            if n.split(".")[0] in ("lightning", "pytorch_lightning", "litdata")
        }, file
