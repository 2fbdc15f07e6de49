"""Read and write a tokenizer's folder as transformers does: tokenizer.json and its settings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from lit_llm.errors import UserError
from lit_llm.io.git_lfs import refuse_pointer
from lit_llm.models.hub import generation_config as generation
from lit_llm.models.hub.chat_templates import read_chat_templates, write_chat_templates
from lit_llm.models.hub.special_tokens import add_special_tokens, settings_of_names
from lit_llm.models.tokenizer import END_OF_TEXT, PAD, Tokenizer, table_size

# A tokenizer.json does not say which of its special tokens ends a text. By convention tokens with
# these names do.
_USUAL_NAMES = {
    "bos_token": ("<|begin_of_text|>", "<s>", "<bos>", END_OF_TEXT),
    "eos_token": (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"),
    "pad_token": (PAD, "<pad>", "[PAD]"),
}

# Formats that transformers converts: SentencePiece or tiktoken; GPT-2's with merges.txt; BERT's.
OLDER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt")


def read_tokenizer(path: Path) -> Tokenizer:
    """See `Tokenizer.from_pretrained`; ``path`` is a tokenizer.json or the folder of one."""
    from tokenizers import Tokenizer as Backend

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        older = [name for name in OLDER_FORMATS if (path / name).is_file()]
        raise UserError(
            f"{file}: no such file; "
            + (
                f"transformers makes it of {older[0]}: AutoTokenizer.from_pretrained({str(path)!r})"
                f".save_pretrained({str(path)!r})"
                if older
                else "a tokenizer is a tokenizer.json or a folder holding one"
            )
        )
    refuse_pointer(file)
    try:
        text = file.read_text(encoding="utf-8")
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise UserError(f"{file}: not a tokenizer.json ({_one_line(error)})") from error

    settings_file = file.parent / "tokenizer_config.json"
    settings = generation.read_object(settings_file)
    own_size = table_size(backend)
    found = add_special_tokens(backend, file.parent)
    model_config = generation.read_object(file.parent / "config.json")
    rows = model_config.get("vocab_size")
    if isinstance(rows, int) and own_size <= rows < table_size(backend):
        # The model was not resized for these tokens: their ids would lie beyond its embedding.
        backend = Backend.from_str(text)
        left_out = {k for k, v in found.names.items() if backend.token_to_id(v) is None}
        warnings.warn(
            f"{settings_file}: tokens that only this file adds are left out, because the model "
            f"has {rows} rows ({', '.join(sorted(left_out)) or 'none of them has a name'})",
            stacklevel=3,
        )
        for key in left_out:
            del found.names[key]
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    names: dict[str, str | None] = {}
    alone = not (settings or found.names or found.names_eos or model_config)
    for key, usual in _USUAL_NAMES.items():
        name = found.names.pop(key, None)
        # If a file names an eos and no bos, there is no bos, whatever config.json says.
        without_bos = key == "bos_token" and found.names_eos
        ids = None if without_bos else model_config.get(f"{key}_id")
        if name is None and ids is not None:
            first = ids[0] if isinstance(ids, list) and ids else ids
            name = backend.id_to_token(first) if isinstance(first, int) and first >= 0 else None
        if name is None and alone:
            name = next((candidate for candidate in usual if candidate in special), None)
        names[key] = name
    templates = read_chat_templates(settings_file, settings.get("chat_template"))
    return Tokenizer(
        backend,
        **names,
        further_names=found.names,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        generation_config=generation.read_generation_config(file.parent),
    )


def write_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int | None) -> None:
    """See `Tokenizer.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    # The library's own save raises a bare Exception on a full disk.
    (folder / "tokenizer.json").write_text(
        tokenizer.backend.to_str(pretty=True) + "\n", encoding="utf-8"
    )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # True would remove the space before a full stop when decoding.
        "clean_up_tokenization_spaces": False,
        **settings_of_names(tokenizer.special_names),
    }
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    templates = write_chat_templates(folder, tokenizer.chat_template, tokenizer.named_templates)
    if templates is not None:
        settings["chat_template"] = templates
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    there = generation.read_generation_config(folder)
    ids = [*generation.eos_ids(tokenizer.generation_config), *tokenizer.stop_ids]
    fields = generation.with_eos_ids({**tokenizer.generation_config, **there}, ids)
    if there or tokenizer.generation_config:
        generation.write_generation_config(folder, fields)
        _add_to_config(folder / "config.json", generation.eos_ids(fields))


def _add_to_config(file: Path, ids: list[int]) -> None:
    """Add stop ids to the model's config.json, for programs that read only that file."""
    config = generation.read_object(file)
    listed = generation.eos_ids(config)
    if listed and not set(ids) <= set(listed):
        # The first one stays: readers of a single id take it.
        config[generation.EOS] = list(dict.fromkeys([*listed, *ids]))
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
