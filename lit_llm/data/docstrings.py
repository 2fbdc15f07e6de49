"""Questions and answers made of the standard library's docstrings: instruction data that every
machine has.

Source files are parsed, never imported. Whole modules are held out by a hash of their name, so that
nothing straddles the split, whatever the Python version ships.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.corpus.reading.sources import STDLIB, list_files

HELD_OUT_SHARE = 0.1
_SKIPPED = {
    "idlelib",
    "lib2to3",
    "turtledemo",
    "test",
    "ensurepip",
    "site-packages",
}  # applications and tests
_SHORTEST, _LONGEST = (
    25,
    600,
)  # characters of an answer's text: below says nothing, above is a chapter
_QUESTIONS = (
    "What does `{name}` do in Python?",
    "Explain `{name}` from Python's standard library.",
    "In Python, what is `{name}` for?",
    "How would you describe `{name}`?",
)


def stdlib_modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of the running interpreter's public standard-library modules, sorted by
    name."""
    found = []
    for file in list_files(STDLIB):
        parts = Path(file.id).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        private = any(part.startswith("_") and part != "__future__" for part in parts)
        if file.source == STDLIB and parts and not private and not _SKIPPED & set(parts):
            found.append((".".join(parts), Path(file.path)))
    return sorted(found)


def held_out(module: str) -> bool:
    """Whether ``module`` is for validation: sha256 of its name in the lowest tenth."""
    return (
        int.from_bytes(hashlib.sha256(module.encode()).digest()[:6], "big") < HELD_OUT_SHARE * 2**48
    )


def docstring_rows() -> Iterator[dict[str, Any]]:
    """Rows {"id", "module", "split", "messages"} in a fixed order, one for every documented public
    object.

    The answer is the object's signature and the first paragraph of its docstring. Of equal answers
    the first is kept.
    """
    seen: set[str] = set()
    for module, path in stdlib_modules():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates and test data in the shape of modules
            continue
        for name, signature, text in _documented(tree):
            paragraph = re.sub(r"\s+", " ", inspect.cleandoc(text).split("\n\n")[0]).strip()
            if not _SHORTEST <= len(paragraph) <= _LONGEST or paragraph in seen:
                continue
            seen.add(paragraph)
            full = f"{module}.{name}"
            digest = hashlib.sha256(full.encode()).digest()
            question = _QUESTIONS[digest[0] % len(_QUESTIONS)].format(name=full)
            yield {
                "id": full,
                "module": module,
                "split": "validation" if held_out(module) else "train",
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": f"`{name}{signature}`: {paragraph}"},
                ],
            }


def _documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(qualified name, signature or "", docstring) of the public functions, classes and methods
    below ``node``."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) or child.name.startswith("_"):
            continue
        name = prefix + child.name
        text = ast.get_docstring(child, clean=False)
        is_class = isinstance(child, ast.ClassDef)
        if text:
            yield (
                name,
                "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})",
                text,
            )
        if is_class:
            yield from _documented(child, name + ".")
