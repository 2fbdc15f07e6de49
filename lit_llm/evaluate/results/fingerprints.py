"""Hashes by which an evaluation is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_llm.models.tokenizer import Tokenizer

# Keys of a task's settings that say where its data lies. The data itself is hashed.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")


def template_fingerprint(tokenizer: Tokenizer, apply_chat_template: bool) -> str:
    """sha256 (hex) of the chat template that prompts are written with; "none" without one."""
    return _sha256(tokenizer.chat_template or "") if apply_chat_template else "none"


def task_fingerprint(task: Any, num_fewshot: int | None) -> str:
    """sha256 (hex) of an lm-eval task: settings, documents, worked examples, own functions.

    Where the data lies does not count, so two machines give the same task the same hash.

    Args:
        task: the task, before `run_task` changed its settings.
        num_fewshot: as for `run_task`.
    """
    settings = {key: value for key, value in task.dump_config().items() if key not in _PLACES}
    if num_fewshot is not None and settings.get("num_fewshot") != 0:
        settings["num_fewshot"] = num_fewshot
    settings.setdefault("num_fewshot", 0)
    digest = hashlib.sha256(_text(settings).encode())
    digest.update(_text(task.VERSION).encode())
    for file in sorted(_source_files(vars(task.config))):
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    documents = [task.eval_docs]
    if settings["num_fewshot"]:
        documents.append(task.fewshot_docs() or [])
    for part in documents:
        for document in part:
            digest.update(_text(document).encode())
    return digest.hexdigest()


def prompt_fingerprint(prompt: str) -> str:
    """The first 16 digits (hex) of a prompt's sha256."""
    return _sha256(prompt)[:16]


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """sha256 (hex) of plain settings."""
    return _sha256(_text(settings))


def _source_files(value: Any) -> set[str]:
    """Files of the functions in a task's settings: they may use others of the same file."""
    if isinstance(value, Mapping):
        return set().union(*(_source_files(inner) for inner in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(_source_files(inner) for inner in value))
    file = getattr(getattr(value, "__code__", None), "co_filename", "")
    return {file} if Path(file).is_file() else set()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_name_of)


def _name_of(value: Any) -> str:
    """A value that JSON cannot hold, without its address in memory."""
    name = getattr(value, "__qualname__", None)
    return str(name) if name else f"{type(value).__name__} {value!s}".partition(" at 0x")[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
