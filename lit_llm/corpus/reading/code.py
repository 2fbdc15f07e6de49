"""Source code: recognise a file's language, and skip vendored, generated and minified files."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Names of languages as in GitHub's Linguist.
LANGUAGES: Mapping[str, str] = {
    suffix: language
    for language, suffixes in {
        "Assembly": "asm s",
        "C": "c h",
        "C#": "cs",
        "C++": "cc cpp cxx hh hpp hxx",
        "CSS": "css",
        "CUDA": "cu cuh",
        "Clojure": "clj cljs",
        "Dart": "dart",
        "Elixir": "ex exs",
        "Erlang": "erl hrl",
        "F#": "fs fsx",
        "Fortran": "f f90 f95",
        "Go": "go",
        "Haskell": "hs",
        "Java": "java",
        "JavaScript": "js jsx mjs cjs",
        "Julia": "jl",
        "Kotlin": "kt kts",
        "Lua": "lua",
        "Markdown": "md markdown",
        "OCaml": "ml mli",
        "Objective-C": "m mm",
        "PHP": "php",
        "Perl": "pl pm",
        "PowerShell": "ps1",
        "Python": "py pyi pyx",
        "R": "r",
        "Ruby": "rb",
        "Rust": "rs",
        "SQL": "sql",
        "Scala": "scala",
        "Shell": "sh bash zsh",
        "Solidity": "sol",
        "Swift": "swift",
        "TOML": "toml",
        "TeX": "tex",
        "TypeScript": "ts tsx mts",
        "Verilog": "v sv",
        "YAML": "yaml yml",
        "Zig": "zig",
        "reStructuredText": "rst",
    }.items()
    for suffix in suffixes.split()
}
_BY_NAME: Mapping[str, str] = {
    "cmakelists.txt": "CMake",
    "dockerfile": "Dockerfile",
    "gnumakefile": "Makefile",
    "makefile": "Makefile",
    "rakefile": "Ruby",
}
# Folders with copies of other projects' code.
_VENDORED = {
    *("node_modules", "bower_components", "Pods", "site-packages", "dist-packages"),
    *(
        "vendor",
        "vendors",
        "vendored",
        "_vendor",
        "third_party",
        "third-party",
        "thirdparty",
        "extern",
    ),
}
# Names of minified files and of files that a generator has written.
_MACHINES = re.compile(
    r"[.-]min\.(js|css|mjs)$|[._]pb2?(_grpc)?\.(py|pyi|go|cc|h)$|\.designer\.cs$", re.I
)
_LOCKS = {
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "poetry.lock",
    "uv.lock",
    "cargo.lock",
    "go.sum",
}
# Notes of generators at the beginning of a file. "do not edit" alone may refer to a line that a
# person wrote.
_GENERATED = re.compile(
    r"@generated\b|generated.{0,200}do not (edit|modify)|do not (edit|modify).{0,200}generated"
    r"|(this|the) file (is|was|has been) auto(-|matically )?generated",
    re.I | re.S,
)
# Mean bytes per line. Minified scripts and tables of data exceed it, programs never do.
_WRITTEN_BY_HAND = 500


def language_of(name: str) -> str | None:
    """Return a file's programming, markup or data language by its name.

    None if the file is not source code.
    """
    name = name.lower()
    return _BY_NAME.get(name) or LANGUAGES.get(name.rpartition(".")[2] if "." in name else "")


def is_license_file(name: str) -> bool:
    """Whether a file of this name holds the licence of the files beside and below it."""
    return re.fullmatch(r"(un)?licen[cs]e([.-].*)?|copying([.-].*)?", name, re.I) is not None


def skip_path(id: str) -> str | None:
    """Return why a file is skipped because of its path within the tree; None if it is not."""
    *folders, name = id.split("/")
    if not _VENDORED.isdisjoint(folders):
        return "vendored code"
    if name.lower() in _LOCKS or _MACHINES.search(name):
        return "generated or minified code"
    return None if language_of(name) else "no source code, by its name"


def skip_text(text: str) -> str | None:
    """Return why a file is skipped because of its content; None if it is not.

    The reasons: a generator's note in the first 1,000 characters, or long lines of data.
    """
    if _GENERATED.search(text[:1000]) or len(text) > _WRITTEN_BY_HAND * (text.count("\n") + 1):
        return "generated or minified code"
    return None
