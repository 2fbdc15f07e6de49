"""How a Python package is cut: signs of legibility, measured the same way for several packages.

    python benchmarks/structure.py NAME=FOLDER [NAME=FOLDER ...]

For each package a row: Python files, modules in the fullest folder, the longest file, files above
400 lines, lines above 100 columns, comments on lines of their own as a share of all lines,
functions above 60 lines, and circles of imports. Folders named ``tests`` are left out.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

LONG_FILE, LONG_LINE, LONG_FUNCTION = 400, 100, 60
COLUMNS = (
    "package", "files", "fullest folder", "longest file", f"files > {LONG_FILE}",
    f"lines > {LONG_LINE}", "comments", f"functions > {LONG_FUNCTION}", "in circles",
)  # fmt: skip


def own_line_comments(source: str) -> int:
    """Lines that are nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(
        token.type == tokenize.COMMENT and token.line.lstrip().startswith("#") for token in tokens
    )


def long_functions(tree: ast.Module) -> int:
    """Functions of more than `LONG_FUNCTION` lines, decorators and docstring included."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return sum((node.end_lineno or 0) - node.lineno + 1 > LONG_FUNCTION for node in functions)


def imports(tree: ast.Module, module: str, known: set[str]) -> set[str]:
    """The package's modules that ``module`` imports when it runs, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in names]
        found |= {name for name in names if name in known and name != module}
    return found


def in_circles(graph: dict[str, set[str]]) -> int:
    """Modules that import themselves by way of others."""
    return sum(module in reached(graph, module) for module in graph)


def reached(graph: dict[str, set[str]], module: str) -> set[str]:
    """The modules that ``module`` imports, and those that they import, and so on."""
    found, todo = set(), list(graph[module])
    while todo:
        if (one := todo.pop()) not in found:
            found.add(one)
            todo += graph.get(one, ())
    return found


def measure(folder: Path) -> dict[str, int | str]:
    """The figures of one package, in the order of `COLUMNS` without the name."""
    files = sorted(f for f in folder.rglob("*.py") if "tests" not in f.relative_to(folder).parts)
    sources = {file: file.read_text(encoding="utf-8") for file in files}
    trees = {file: ast.parse(source) for file, source in sources.items()}
    names = {
        file: ".".join(file.relative_to(folder.parent).with_suffix("").parts) for file in files
    }
    known = {name for name in names.values() if not name.endswith(".__init__")}
    graph = {name: imports(trees[file], name, known) for file, name in names.items()}
    lines = {file: source.splitlines() for file, source in sources.items()}
    total = sum(map(len, lines.values()))
    longest = max(files, key=lambda file: len(lines[file]))
    fullest, count = Counter(
        str(file.parent.relative_to(folder)) for file in files if file.name != "__init__.py"
    ).most_common(1)[0]
    comments = sum(map(own_line_comments, sources.values()))
    return {
        "files": len(files),
        "fullest folder": f"{count} ({fullest})",
        "longest file": f"{len(lines[longest])} ({longest.relative_to(folder)})",
        f"files > {LONG_FILE}": sum(len(one) > LONG_FILE for one in lines.values()),
        f"lines > {LONG_LINE}": sum(
            len(line) > LONG_LINE for one in lines.values() for line in one
        ),
        "comments": f"{comments / total:.1%}",
        f"functions > {LONG_FUNCTION}": sum(map(long_functions, trees.values())),
        "in circles": in_circles(graph),
    }


def main() -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        figures = {"package": name, **measure(Path(folder).absolute())}
        print("| " + " | ".join(str(figures[column]) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
