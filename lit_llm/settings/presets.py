"""Presets: config files by name, such as ``--config pretrain/quickstart``."""

from __future__ import annotations

import difflib
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.settings.yaml_file import read_yaml


def config_folders() -> list[Path]:
    """Folders of presets: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent.parent
    return [
        folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()
    ]


def all_presets() -> dict[str, Path]:
    """Presets by name, such as ``pretrain/quickstart``."""
    return {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in config_folders()
        for file in sorted(folder.rglob("*.yaml"))
    }


OF_RUNS = ("pretrain", "finetune")
"""Preset folders of the Trainer's verbs."""
OF_CORPORA = ("corpus",)


def find_config(name: str, folders: tuple[str, ...]) -> Path:
    """Find the file ``name``, or the preset of that name (``pretrain/quickstart``).

    Args:
        name: value of ``--config``.
        folders: preset folders that the verb accepts: "corpus", "finetune", "pretrain".

    Raises:
        UserError: no such file or preset (the message names the nearest preset), a preset of
            another verb, or not a YAML mapping.
    """
    # The folder of a preset decides the verb that it belongs to.
    known = all_presets()
    presets = {key: file for key, file in known.items() if key.partition("/")[0] in folders}
    if not name.strip():
        raise UserError(f"--config: give a file or a preset: {', '.join(presets)}")
    path = Path(name).expanduser()
    if not path.is_file():
        key = name.removesuffix(".yaml").removeprefix("configs/")
        if key in known and key not in presets:
            verb = "corpus build" if key.startswith("corpus/") else "fit"
            raise UserError(f"--config {name}: a preset of lit_llm {verb}")
        if key not in presets:
            near = difflib.get_close_matches(key, presets, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"--config {name}: no such file or preset; {hint}presets: {', '.join(presets)}"
            )
        path = presets[key]
    if not isinstance(read_yaml(path), dict):
        raise UserError(f"{path}: holds no settings; a config is a mapping such as 'data: {{...}}'")
    return path


def config_name(path: str | Path) -> str:
    """Name for runs of a config file: its stem, for a preset with its folder's name.

    Example: ``pretrain-quickstart``.
    """
    path = Path(path).absolute()
    for folder in config_folders():
        if path.is_relative_to(folder):
            return "-".join(path.relative_to(folder).with_suffix("").parts)
    return path.stem
