"""Run folder and starting checkpoint of a call of the command line."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_llm.errors import UserError, check_folder
from lit_llm.fit.launchers import FIRST, Launcher
from lit_llm.io.atomic import remove
from lit_llm.io.run_lock import NAME, RunLock, has_only_a_lock
from lit_llm.training.callbacks.checkpoint_folder import checkpoints, damage, newest_whole

# Environment variable with which the first process tells the run folder to the processes that
# Lightning starts. At that time the folder is no longer empty.
_CHOSEN = "LIT_LLM_RUN_FOLDER"
_claimed: list[Path] = []
_begun: list[Path] = []  # folders that the user named, without files when the fit began
_held: list[RunLock] = []


def prepare_run(verb: str, name: str, config: Any, launcher: Launcher | None = None) -> Path:
    """Choose run folder and checkpoint, and write both into ``config``.

    The folder is ``trainer.default_root_dir``, or ``runs/<name>``, with a number if that name is
    taken. The checkpoint is one of:

    - a file
    - "last": the newest complete checkpoint of the folder
    - "auto", for a scheduler that repeats a command: "last" if the run has saved a checkpoint, else
      a new start. Files of an earlier start are set aside.

    Args:
        verb: fit, validate, test or predict.
        name: name of the run.
        config: the verb's configuration.
        launcher: the launcher that started this process as one of several, or None.

    Returns:
        The run folder.

    Raises:
        UserError: a fit into a folder that holds a run already or in which another fit is running,
            nothing to resume, or ranks started by a launcher without a folder that they could agree
            on.
    """
    given, auto, last = (
        config.trainer.default_root_dir,
        config.ckpt_path == "auto",
        config.ckpt_path == "last",
    )
    if auto and verb != "fit":
        raise UserError(f"--ckpt_path auto: starts or resumes a fit; {verb} takes last, or a file")
    checkpoint = (
        None if last or auto or config.ckpt_path is None else Path(config.ckpt_path).expanduser()
    )
    # A checkpoint file is checked before the folder is chosen and created.
    if checkpoint is not None and not checkpoint.exists():
        hint = "; give RUN/checkpoints/best.ckpt" if config.ckpt_path == "best" else ""
        raise UserError(f"--ckpt_path {checkpoint}: no such file or folder{hint}")
    if checkpoint is not None and (checkpoint / "config.json").is_file():
        raise UserError(
            f"--ckpt_path {checkpoint}: a Hugging Face directory, not a checkpoint; give it as "
            "--model.init_from"
        )
    if checkpoint is not None and (reason := damage(checkpoint)) is not None:
        raise UserError(
            f"--ckpt_path {checkpoint}: not a checkpoint, or damaged ({reason}); last takes a "
            "complete one"
        )
    # The folder: chosen by the first process, given by the user, that of the checkpoint, the newest
    # run of this name, or a new one.
    if _rank() and _CHOSEN in os.environ:
        folder = Path(os.environ[_CHOSEN])
    elif given is not None:
        folder = Path(given).expanduser()
        check_folder("trainer.default_root_dir", folder)
        if verb == "fit" and config.ckpt_path is None and not _rank() and _used(folder):
            raise UserError(
                f"trainer.default_root_dir={folder} is not empty: resume it with --ckpt_path last, "
                "or name another folder"
            )
        if verb == "fit" and not _rank() and not _used(folder):
            _begun.append(folder.absolute())
    elif launcher is not None and launcher.from_outside:
        raise UserError(
            "several processes started by torchrun or a scheduler need --trainer.default_root_dir"
        )
    elif verb != "fit" and checkpoint is not None and checkpoint.parent.name == "checkpoints":
        folder = checkpoint.parent.parent  # the run folder of the checkpoint
    elif last or (auto and checkpoints(_newest_run(name) / "checkpoints")):
        folder = _newest_run(name)
    else:
        folder = _claim_name(name) if verb == "fit" else Path("runs") / name
    # The first process locks the folder for the whole fit.
    if verb == "fit" and not _rank():
        _held.append(RunLock(folder))
    if auto:
        last = bool(checkpoints(folder / "checkpoints"))
        if not last:
            config.ckpt_path = None
            if _held and _used(folder):
                _held[-1].move(_set_aside(folder))
    if last:
        config.ckpt_path = str(_last_checkpoint(folder))
    config.trainer.default_root_dir = str(folder)
    if not _rank():
        os.environ |= {_CHOSEN: str(folder.absolute()), FIRST: str(os.getpid())}
    return folder


def leave_run() -> None:
    """Release the folder's lock, and remove folders in which no training began.

    A mistake that is found early therefore leaves no files, and the same command with the mistake
    mended is not refused. A folder that the user made stays.
    """
    os.environ.pop(_CHOSEN, None)
    os.environ.pop(FIRST, None)
    while _begun:
        folder = _begun.pop()
        if folder.is_dir() and not (folder / "config.yaml").exists():
            remove(folder / "tensorboard")  # the logger creates it before the data is checked
    while _held:
        _held.pop().release()
    while _claimed:
        folder = _claimed.pop()
        if not (folder / "config.yaml").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def _used(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or not has_only_a_lock(folder))


def _set_aside(run: Path) -> Path:
    """Rename the folder of a run that saved nothing, and return its new name.

    A folder that does not belong to a run is refused.
    """
    # Loggers create their files shortly before config.yaml is written.
    if not run.is_dir() or not (
        (run / "config.yaml").exists() or {f.name for f in run.iterdir()} <= {"tensorboard", NAME}
    ):
        raise UserError(
            f"trainer.default_root_dir={run} is not empty and not a run folder: name another folder"
        )
    number = 1
    while (aside := run.with_name(f"{run.name}.started-{number}")).exists():
        number += 1
    run.rename(aside)
    rank_zero_info(f"{run} was started and saved nothing: set aside as {aside}")
    return aside


def _claim_name(name: str) -> Path:
    """Create the first free folder of this name.

    It is created at once, because another fit may look for a name at the same time.
    """
    folder, number = Path("runs") / name, 2
    folder.parent.mkdir(exist_ok=True)
    while True:
        try:
            folder.mkdir()
            _claimed.append(folder.absolute())
            return folder
        except FileExistsError:
            folder, number = folder.with_name(f"{name}-{number}"), number + 1


def _newest_run(name: str) -> Path:
    """The run of this name with the highest number that has begun to train, else the plain name.

    A run that was killed before its first checkpoint counts too. Otherwise an older run would be
    continued instead.
    """
    numbered, runs = [], Path("runs")
    # No glob: the name may contain pattern characters.
    for folder in runs.iterdir() if runs.is_dir() else []:
        match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", folder.name)
        if match and (folder / "config.yaml").exists():
            numbered.append((int(match[1] or 1), folder))
    return max(numbered)[1] if numbered else runs / name


def _last_checkpoint(run: Path) -> Path:
    folder = run / "checkpoints"
    if not checkpoints(folder):
        raise UserError(
            f"--ckpt_path last: nothing to resume, {folder} holds no checkpoint; leave it out to "
            f"start"
        )
    file, reasons = newest_whole(folder)
    if file is None:
        raise UserError(f"--ckpt_path last: no checkpoint is complete; {'; '.join(reasons)}")
    if reasons:
        rank_zero_warn(f"{'; '.join(reasons)}: the steps since {file.name} are repeated")
    rank_zero_info(f"resuming from {file}")
    return file
