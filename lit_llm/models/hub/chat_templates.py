"""Read and write the chat templates in a tokenizer's folder, where transformers keeps them.

The template in use is called "default". Transformers 4 wrote all templates into
tokenizer_config.json, as one text or a list of {"name", "template"}. Transformers 5 writes
chat_template.jinja and additional_chat_templates/NAME.jinja. Both versions read both forms; files
have priority over tokenizer_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_llm.errors import UserError

DEFAULT = "default"


def read_chat_templates(settings_file: Path, setting: Any) -> dict[str, str]:
    """Return name -> Jinja source of every chat template beside ``settings_file``.

    Args:
        settings_file: the folder's tokenizer_config.json.
        setting: its ``chat_template``.

    Raises:
        UserError: the setting has the wrong type, or a file is not UTF-8.
    """
    found = {}
    for name, file in _files(settings_file.parent).items():
        try:
            found[name] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error})") from None
    if found or setting is None:
        return found
    entries = [{"name": DEFAULT, "template": setting}] if isinstance(setting, str) else setting
    try:
        templates = [(entry["name"], entry["template"]) for entry in entries]
    except (TypeError, KeyError):
        templates = [(None, None)]
    if not all(isinstance(text, str) for pair in templates for text in pair):
        raise UserError(
            f"{settings_file}: chat_template must be a text or a list of {{name, template}}"
        )
    return dict(templates)


def write_chat_templates(
    folder: Path, default: str | None, named: dict[str, str]
) -> str | list[dict[str, str]] | None:
    """Return ``chat_template`` for tokenizer_config.json; remove older template files."""
    for file in _files(folder).values():  # files would have priority over the setting
        file.unlink()
    if not named:
        return default
    templates = named if default is None else {DEFAULT: default, **named}
    return [{"name": name, "template": source} for name, source in templates.items()]


def _files(folder: Path) -> dict[str, Path]:
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {file.name.removesuffix(".jinja"): file for file in named}
    if (folder / "chat_template.jinja").is_file():
        files[DEFAULT] = folder / "chat_template.jinja"
    return files
