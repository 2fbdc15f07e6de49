"""The files of a checkpoint folder: listing, integrity checks, and cleanup of interrupted saves."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_llm.errors import UserError, is_of_the_disk, more_room
from lit_llm.models.parallel.sharded_checkpoint import damage_of_shards, discard, put

_NAME = re.compile(r"step-\d+\.ckpt(\.part)?")


def checkpoints(folder: Path, unnamed: bool = False) -> list[Path]:
    """The step checkpoints of ``folder``, oldest first.

    With ``unnamed`` also those that are not finished, or are finished but not renamed yet.
    """
    found = [(step_of(file), file) for file in folder.glob("step-*") if _NAME.fullmatch(file.name)]
    return [file for _, file in sorted(found) if unnamed or file.suffix == ".ckpt"]


def name_of(step: int) -> str:
    """File name of the checkpoint of ``step``."""
    return f"step-{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """The step of one of `checkpoints`, from its name."""
    return int(checkpoint.name.removeprefix("step-").partition(".")[0])


def damage(file: Path) -> str | None:
    """A description of the damage to a checkpoint file or folder; None if it is whole.

    All bytes are read once and compared with their checksums. torch writes a zip archive with a
    CRC-32 of every record and a directory at the end, but does not check them when it reads: a
    flipped bit would become part of a weight. A folder has the checksums in its manifest.
    """
    if file.is_dir():
        return damage_of_shards(file)
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        zlib.error,
    ) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if broken is None else f"the checksum of {broken} is another"


def newest_whole(folder: Path, before: float = math.inf) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a step below ``before`` that has no `damage`.

    No process may write to ``folder`` at the same time. A checkpoint that is whole but not renamed
    yet also counts; `Checkpoint` renames it.

    Returns:
        The checkpoint or None, and a sentence about each newer checkpoint that is damaged.
    """
    reasons: list[str] = []
    for file in reversed([f for f in checkpoints(folder, unnamed=True) if step_of(f) < before]):
        reason = damage(file)
        if reason is None:
            return file, reasons
        reasons.append(f"{file} is damaged ({reason})")
    return None, reasons


def tidy(folder: Path) -> None:
    """Rename whole checkpoints that lack only their name, and remove unfinished files.

    No process may write to ``folder`` at the same time.
    """
    for leftover in folder.glob("*.part"):
        named = leftover.with_suffix("")
        has_a_whole_one = named.exists() and damage(named) is None
        if not has_a_whole_one and damage(leftover) is None:
            put(leftover, named)
        else:
            discard(leftover)
    for leftover in folder.glob("*.replaced"):  # see `put`
        if leftover.with_suffix("").exists():
            discard(leftover)
        else:
            leftover.rename(leftover.with_suffix(""))


def set_aside_later(folder: Path, step: int, keep_best: bool) -> None:
    """Rename checkpoints after ``step``, from which a run continues, to "abandoned-...".

    No process may write to ``folder`` at the same time.

    Args:
        folder: the checkpoint folder.
        step: the step from which the run continues.
        keep_best: whether ``best.ckpt`` belongs to this run. Then it stays, and the next better
            score overwrites it.
    """
    for file in checkpoints(folder):
        # Later steps do not belong to this run, and `last` must not find them.
        if step_of(file) > step:
            put(file, file.with_name(f"abandoned-{file.name}"))
    best = folder / "best.ckpt"
    if not keep_best and best.exists():
        put(best, best.with_name("abandoned-best.ckpt"))


def remove_old(folder: Path, keep: int, way_back: int | None) -> None:
    """Remove all step checkpoints except the newest ``keep``.

    Args:
        folder: the checkpoint folder.
        keep: number of checkpoints to keep.
        way_back: if given, the newest checkpoint of a step below this one is kept too.
    """
    old = checkpoints(folder)[:-keep]
    kept = [file for file in old if way_back is not None and step_of(file) < way_back][-1:]
    for file in old:
        if file not in kept:
            discard(file)


def remove_from(folder: Path, step: int) -> None:
    """Remove the step checkpoints of ``step`` and of later steps."""
    for file in checkpoints(folder):
        if step_of(file) >= step:
            discard(file)


@contextmanager
def telling_of_the_disk(target: Path) -> Iterator[None]:
    """Turn disk errors during the write of checkpoint ``target`` into a UserError."""
    try:
        yield
    except Exception as error:
        if not is_of_the_disk(error):
            raise
        kept = checkpoints(target.parent)
        raise UserError(
            f"{target}: the checkpoint could not be written ({error}); {more_room()} and "
            "resume with --ckpt_path last" + (f" from {kept[-1].name}" if kept else "")
        ) from error
