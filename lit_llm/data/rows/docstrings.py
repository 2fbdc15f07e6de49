"""Questions and answers from the standard library's docstrings: data that every machine has.

Source files are parsed, never imported. Whole modules are held out by a hash of their name, so no
module is in both splits, whatever the Python version ships.
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
# Folders of applications and tests.
_SKIPPED = {
    "idlelib",
    "lib2to3",
    "turtledemo",
    "test",
    "ensurepip",
    "site-packages",
}
# Characters of an answer. Shorter texts say nothing, longer ones are whole chapters.
_SHORTEST, _LONGEST = (
    25,
    600,
)
_QUESTIONS = (
    "What does `{name}` do in Python?",
    "Explain `{name}` from Python's standard library.",
    "In Python, what is `{name}` for?",
    "How would you describe `{name}`?",
)


def stdlib_modules() -> list[tuple[str, Path]]:
    """Public standard-library modules of the running interpreter, sorted: (dotted name, file)."""
    found = []
    for file in list_files(STDLIB):
        parts = Path(file.id).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        private = any(part.startswith("_") and part != "__future__" for part in parts)
        if file.source == STDLIB and parts and not private and not _SKIPPED & set(parts):
            found.append((".".join(parts), Path(file.path)))
    return sorted(found)


def held_out(module: str) -> bool:
    """Whether ``module`` is for validation: the sha256 of its name is in the lowest tenth."""
    return (
        int.from_bytes(hashlib.sha256(module.encode()).digest()[:6], "big") < HELD_OUT_SHARE * 2**48
    )


def docstring_rows() -> Iterator[dict[str, Any]]:
    """Rows {"id", "module", "split", "messages"}, one per documented public object.

    Their order is fixed. The answer is the object's signature and the first paragraph of its
    docstring. Of equal answers, the first one is kept.
    """
    seen: set[str] = set()
    for module, path in stdlib_modules():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates and test data that look like modules
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
    """Public functions, classes and methods below ``node`` that have a docstring.

    Yields (qualified name, signature or "", docstring).
    """
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
