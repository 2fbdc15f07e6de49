"""A folder of checkpoints: which there are, which are whole, and what a save that was cut short
left."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_llm.errors import UserError, is_of_the_disk, more_room
from lit_llm.models.parallel.parts import damage_of_parts, discard, put

_NAME = re.compile(r"step-\d+\.ckpt(\.part)?")


def checkpoints(folder: Path, unnamed: bool = False) -> list[Path]:
    """The folder's step checkpoints, oldest first; with ``unnamed`` also those that were not
    finished, or did not get their name."""
    found = [(step_of(file), file) for file in folder.glob("step-*") if _NAME.fullmatch(file.name)]
    return [file for _, file in sorted(found) if unnamed or file.suffix == ".ckpt"]


def name_of(step: int) -> str:
    """Of the checkpoint of a step."""
    return f"step-{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """Of one of `checkpoints`."""
    return int(checkpoint.name.removeprefix("step-").partition(".")[0])


def damage(file: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None: they are read once and held to their
    checksums.

    torch writes a zip archive with a CRC-32 of every record and a directory at its end, and reads
    it without looking at
    them: a flipped bit would be a weight. A folder has them in its manifest.
    """
    if file.is_dir():
        return damage_of_parts(file)
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
    """The newest of all `checkpoints` of a step below ``before`` that has no `damage`, and a
    sentence about each newer one that has.

    Nobody may be writing to ``folder``. One that lacks nothing but its name gets it from
    `Checkpoint`.
    """
    reasons: list[str] = []
    for file in reversed([f for f in checkpoints(folder, unnamed=True) if step_of(f) < before]):
        reason = damage(file)
        if reason is None:
            return file, reasons
        reasons.append(f"{file} is damaged ({reason})")
    return None, reasons


def tidy(folder: Path) -> None:
    """Give what lacks nothing but its name that name, and remove what else an interrupted save left
    behind.

    Nobody may be writing to ``folder``.
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
    """Give what is not the past of a run that goes on from ``step`` another name, "abandoned-...".

    Nobody may be writing to ``folder``.

    Args:
        keep_best: ``best.ckpt`` is this run's; its next score writes over one of later steps.
    """
    for file in checkpoints(folder):
        # What came after the step is not this run's past, nor what `last` should find.
        if step_of(file) > step:
            put(file, file.with_name(f"abandoned-{file.name}"))
    best = folder / "best.ckpt"
    if not keep_best and best.exists():
        put(best, best.with_name("abandoned-best.ckpt"))


def remove_old(folder: Path, keep: int, way_back: int | None) -> None:
    """Remove all step checkpoints but the newest ``keep``.

    Args:
        way_back: the newest checkpoint of an earlier step than this one is kept too, if given.
    """
    old = checkpoints(folder)[:-keep]
    kept = [file for file in old if way_back is not None and step_of(file) < way_back][-1:]
    for file in old:
        if file not in kept:
            discard(file)


def remove_from(folder: Path, step: int) -> None:
    """Remove the step checkpoints from ``step`` on."""
    for file in checkpoints(folder):
        if step_of(file) >= step:
            discard(file)


@contextmanager
def telling_of_the_disk(target: Path) -> Iterator[None]:
    """Make a UserError of what is the disk's fault while the checkpoint ``target`` is written."""
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
