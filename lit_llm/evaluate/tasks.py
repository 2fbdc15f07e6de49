"""Offline evaluation tasks for lm-eval, made of held-out modules of the standard library.

- ``stdlib_choice``: given the head of a function, choose the first sentence of its docstring out of
  four.
- ``stdlib_rolling``: bits per byte and perplexities of source files.
- ``stdlib_complete``: the last word of a docstring's first sentence.

The modules are the held-out ones of the docstring questions. Docstrings whose text also occurs in a
training module are left out. Hashes decide selection and order, so equal interpreters make equal
tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lit_llm.data.rows.docstrings import docstring_rows, held_out, stdlib_modules
from lit_llm.errors import UserError
from lit_llm.io.atomic import build_folder
from lit_llm.io.cache import default_cache_dir

LOCAL_TASKS = ("stdlib_choice", "stdlib_rolling", "stdlib_complete")
CODE_TASKS = ("local_humaneval", "local_humaneval_instruct")
"""Tasks that run programs which the model writes (`lit_llm.evaluate.box.humaneval`)."""
_CHOICE_ITEMS, _FILES, _COMPLETE_ITEMS = 100, 20, 50
_FILE_CHARACTERS = 6000
_FORMAT = 1  # version of the items; raise it when they change, so that the cached ones are replaced


def local_tasks(cache_dir: Path | None = None) -> Path:
    """Folder with the tasks' YAML and JSONL files, created if it does not exist.

    Args:
        cache_dir: parent folder. None: $LIT_LLM_CACHE or ~/.cache/lit_llm.

    Raises:
        UserError: the folder cannot be written.
    """
    parent = ((cache_dir or default_cache_dir()) / "tasks").absolute()
    modules = [(name, path) for name, path in stdlib_modules() if held_out(name)]
    # The path is part of the key, because lm-eval needs absolute paths in the YAML files.
    content = [_FORMAT, sys.version, str(parent), [name for name, _ in modules]]
    folder = parent / f"stdlib-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}"
    try:
        build_folder(folder, lambda workspace: _write_tasks(workspace, folder, modules))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from None
    return folder


def _write_tasks(workspace: Path, folder: Path, modules: list[tuple[str, Path]]) -> None:
    sentences = list(_first_sentences())
    _write_task(
        workspace, folder, "stdlib_choice", choice_items(sentences),
        output_type="multiple_choice", doc_to_text="question", doc_to_choice="choices",
        doc_to_target="gold", target_delimiter="", fewshot_split="test",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    _write_task(
        workspace, folder, "stdlib_rolling", rolling_items(modules),
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text", num_fewshot=0,
        metric_list=[
            {"metric": name} for name in ("bits_per_byte", "byte_perplexity", "word_perplexity")
        ],
    )  # fmt: skip
    first_word = {"function": "regex", "regex_pattern": "([A-Za-z]+)"}
    _write_task(
        workspace, folder, "stdlib_complete", complete_items(sentences),
        output_type="generate_until", doc_to_text="question", doc_to_target="word",
        target_delimiter=" ", fewshot_split="test",
        generation_kwargs={"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False},
        filter_list=[{"name": "none", "filter": [first_word, {"function": "take_first"}]}],
        metric_list=[{"metric": "exact_match", "ignore_case": True}],
    )  # fmt: skip


def _write_task(
    workspace: Path, folder: Path, name: str, items: list[dict[str, Any]], **settings: Any
) -> None:
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (workspace / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / f"{name}.jsonl")},
            "cache_dir": str(folder / "arrow"),
        },
        "test_split": "test",
        **settings,
        "metadata": {"version": 1.0},
    }
    (workspace / f"{name}.yaml").write_text(
        yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
    )


def choice_items(sentences: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Items {"id", "question", "choices": four texts, "gold": index}.

    The three wrong choices begin docstrings of other functions.
    """
    items = []
    for entry in _by_hash(sentences, "choice")[:_CHOICE_ITEMS]:
        others = [other for other in sentences if other["sentence"] != entry["sentence"]]
        four = _by_hash([entry, *_by_hash(others, entry["id"])[:3]], f"order of {entry['id']}")
        choices = [one["sentence"] for one in four]
        items.append({"id": entry["id"], "question": entry["head"], "choices": choices,
                      "gold": choices.index(entry["sentence"])})  # fmt: skip
    return items


def complete_items(sentences: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Items {"id", "question": head and sentence without its last word, "word"}."""
    items = []
    for entry in _by_hash(sentences, "complete"):
        if found := re.fullmatch(r"(\S+(?: \S+){3,}) ([A-Za-z]{4,})[.!?]?", entry["sentence"]):
            items.append(
                {"id": entry["id"], "question": entry["head"] + found[1], "word": found[2]}
            )
    return items[:_COMPLETE_ITEMS]


def rolling_items(modules: list[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Items {"id": module, "text": the first 6000 characters of its file, cut at a line end}."""
    items = []
    for name, path in modules:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > _FILE_CHARACTERS:
            text = text[: text.rfind("\n", 0, _FILE_CHARACTERS) + 1]
        if len(text) >= 1000:
            items.append({"id": name, "text": text})
    return _by_hash(items, "rolling")[:_FILES]


def _first_sentences() -> Iterator[dict[str, str]]:
    """First docstring sentences of the held-out functions and classes.

    Yields {"id", "head": source up to the docstring's quotes, "sentence"}.
    """
    seen = set()
    for row in docstring_rows():
        if row["split"] != "validation":
            continue
        signature, _, paragraph = row["messages"][1]["content"].removeprefix("`").partition("`: ")
        sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)[0]
        if not 20 <= len(sentence) <= 200 or sentence in seen:
            continue
        seen.add(sentence)
        owner, _, name = row["id"].rpartition(".")
        arguments = signature.partition("(")[2]
        line = f"def {name}({arguments}:" if arguments else f"class {name}:"
        yield {"id": row["id"], "head": f'# {owner}\n{line}\n    """', "sentence": sentence}


def _by_hash(entries: list[dict[str, Any]], salt: str) -> list[dict[str, Any]]:
    return sorted(
        entries, key=lambda entry: hashlib.sha256(f"{salt}\n{entry['id']}".encode()).digest()
    )
