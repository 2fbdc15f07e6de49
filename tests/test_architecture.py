"""Imports point one way, and models/ can be lifted out."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lit_llm

PACKAGE = Path(lit_llm.__file__).parent
# What each package may import of the others; all may import what is shared. Only packages that
# import Lightning may import what we use of its inside.
SHARED = {"errors", "io", "pages", "settings"}
INSIDE = "lightning_internals"
ARROWS = {
    "models": set(),
    "corpus": {"models"},
    "data": {"corpus", "models", INSIDE},
    "training": {"data", "corpus", "models", INSIDE},
    "report": {"training", "data", "corpus", "models", INSIDE},
    "evaluate": {"training", "data", "corpus", "models", INSIDE},
    "terminal": {"data", "corpus", "models"},
    "plan": {"models"},
    "people": set(),
    "serve": {"people", "data", "models"},
}


def imports(file: Path) -> set[str]:
    """Full names of the modules that ``file`` imports, inside functions too.

    Imports for type checkers alone do not count, since they are never run.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
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


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    """Imports inside functions count: they put a circle off, they do not remove it."""
    graph = {}
    for file in (PACKAGE / package).rglob("*.py"):
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = imports(file)
    # "from lit_llm.plan import gpus" needs the module gpus, not what the package's file defines.
    packages = {name.rpartition(".")[0] for name in graph}
    modules = {name: sorted(found & graph.keys() - packages) for name, found in graph.items()}
    TopologicalSorter(modules).prepare()  # raises CycleError, which names the circle


def test_what_we_use_of_lightnings_inside_needs_nothing_of_ours() -> None:
    assert not {name for name in imports(PACKAGE / f"{INSIDE}.py") if name.startswith("lit_llm")}
