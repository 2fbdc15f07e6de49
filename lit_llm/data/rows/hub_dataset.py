"""Datasets of the Hugging Face hub as sources: ``hf://owner/name[:split]``."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.data.rows.shapes import SPLITS
from lit_llm.errors import UserError

HUB = "hf://"
_SOURCE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "state.json")  # facts about a dataset


@functools.cache
def hub_files(source: str) -> list[Path]:
    """The data files of ``hf://owner/name[:split]``, downloaded into the hub's cache.

    A file belongs to the split that its name or folder begins with (``train-00000-of-2.parquet``,
    ``data/test.jsonl``). Without ``:split``, those of "train" are taken, and all files if no name
    tells a split.

    Raises:
        UserError: the address is wrong, the package huggingface_hub is missing, the dataset cannot
            be fetched, or it has no such split.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise UserError(f"data.sources: {source!r}: give hf://owner/name or hf://owner/name:split")
    folder = _fetch(found[1], source)
    named: dict[str | None, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        name = path.name.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and name.endswith(_ENDINGS) and not hidden and name not in _NOT_ROWS:
            named.setdefault(_split_name(inner), []).append(path)
    splits = [split for split in named if split is not None]
    wanted = found[2] or ("train" if splits else None)
    if wanted not in named:
        there = ", ".join(splits) or "none that a file's name tells"
        what = f"no split {wanted!r}; its splits are {there}" if named else "no data file"
        raise UserError(f"data.sources: {source}: {what} (read are {', '.join(_ENDINGS)})")
    others = [split for split in splits if split != wanted]
    if others and found[2] is None:
        rank_zero_info(f"{source}: split {wanted} is read; there are also {', '.join(others)}")
    return named[wanted]


def _fetch(name: str, source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"data.sources: {source} needs huggingface_hub; pip install huggingface_hub"
        ) from None
    patterns = [f"*{ending}{more}" for ending in _ENDINGS for more in ("", *_COMPRESSED)]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub's client raises errors of many kinds
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"data.sources: {source} cannot be fetched ({said})") from error


def _split_name(inner: Path) -> str | None:
    """The split that a file's name, or a folder above it, begins with; None if neither does."""
    for part in (inner.name, *reversed(inner.parts[:-1])):
        word = re.split(r"[-.]", part.lower())[0]
        if word.partition("_")[0] in SPLITS:
            return word
    return None
