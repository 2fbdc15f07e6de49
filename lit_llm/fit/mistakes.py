"""Wrong settings of the Trainer: refused before it is built, or recognized in later exceptions."""

from __future__ import annotations

import linecache
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import PeerLost, UserError, told_of_a_path
from lit_llm.settings.arguments import explain_mistake

_LIGHTNING = Path(lightning.__file__).parent
# Logging packages with exception types of their own
_LOGGING = ("wandb", "mlflow", "comet_ml", "neptune", "clearml")
_NO_MEMORY = "out of memory|can't allocate memory|not enough memory"


def check_settings(verb: str, trainer: Any, data: Any) -> None:
    """Refuse settings that Lightning accepts silently and then ignores or fails on.

    Args:
        verb: fit, validate, test or predict.
        trainer: the Trainer's arguments in the configuration.
        data: the data module's section of the configuration.

    Raises:
        UserError: names the setting and what to set instead.
    """
    limit = {"fit": "train", "validate": "val"}.get(verb, verb)
    clip, interval = trainer.gradient_clip_val, trainer.val_check_interval
    unused = f"{verb} would do nothing; leave it out"
    # A fit with a data module of lit_llm, which sets these settings where they have the Trainer's
    # default.
    ours = verb == "fit" and str(getattr(data, "class_path", "")).startswith("lit_llm.")
    reasons = {
        "barebones": trainer.barebones
        and "leaves out checkpoints, metrics and report, which make a run folder: leave it out",
        "model_registry": trainer.model_registry is not None
        and "uploads what Lightning's ModelCheckpoint writes, which is not used here: leave it out",
        "log_every_n_steps": _below(trainer.log_every_n_steps, 0) and "must be at least 0",
        "num_sanity_val_steps": _below(trainer.num_sanity_val_steps, -1)
        and "must be at least 0, or -1 for all of the validation data",
        "gradient_clip_val": _below(clip, 0) and "must be at least 0",
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm is not None
        and clip is None
        and "goes with trainer.gradient_clip_val, which is not set",
        "max_epochs": ours
        and trainer.max_epochs not in (None, -1, 1)
        and "a run is one epoch, as long as data.tokens or data.epochs make it: leave it out and "
        "change those",
        "max_steps": verb == "fit" and trainer.max_steps == 0 and unused,
        "val_check_interval": (
            interval in (0, 0.0)
            and "must be above 0: data.validate_every=0 validates at the end only, "
            "trainer.limit_val_batches=0 never"
        )
        or (
            # The data module would treat the float 1.0 as the default. The int 1 has a different
            # meaning.
            ours
            and isinstance(interval, float)
            and interval == 1
            and "to validate at the end only, set data.validate_every=0 instead"
        ),
        f"limit_{limit}_batches": trainer[f"limit_{limit}_batches"] in (0, 0.0) and unused,
        "max_time": (_seconds(trainer.max_time) == 0 and unused)
        or (
            isinstance(trainer.max_time, str)
            and _seconds(trainer.max_time) is None
            and "must be DD:HH:MM:SS, such as 00:08:00:00 for eight hours"
        ),
    }
    for key, reason in reasons.items():
        if reason:
            raise UserError(f"trainer.{key}={trainer[key]}: {reason}")
    every = (getattr(data, "init_args", None) or {}).get("validate_every")
    if verb == "fit" and interval is not None and every is not None:
        rank_zero_info(
            f"trainer.val_check_interval={interval} (in micro-batches) replaces "
            f"data.validate_every={every}"
        )


def _below(value: Any, least: int) -> bool:
    return value is not None and value < least


def _seconds(duration: Any) -> float | None:
    """Seconds of a Trainer's max_time; None for another form, which Lightning reports itself."""
    if isinstance(duration, str) and re.fullmatch(r"\d+(:\d+){3}", duration):
        return float(sum(map(int, duration.split(":"))))
    return float(sum(duration.values())) if isinstance(duration, dict) else None


def in_constructor(error: Exception, settings: Mapping[str, Any]) -> UserError:
    """Turn an exception of the Trainer's constructor into a UserError that names the setting."""
    text = " ".join(str(error).split())
    keys = [
        key
        for key in ("accelerator", "devices", "strategy", "precision")
        if f"{key}=" in text or f"`{key}`" in text
    ]
    about = ("Accelerator", "torch_xla", "backend found")
    keys += ["accelerator"] if any(words in text for words in about) else []
    mend = "; this machine has none: set it to auto or cpu" if keys[:1] == ["accelerator"] else ""
    mend = mend if settings["accelerator"] in ("gpu", "cuda", "mps", "tpu") else ""
    said = "".join(f"trainer.{key}={settings[key]}: " for key in keys[:1])
    return UserError(said + (text.rstrip(".!") if mend else text) + mend)


def explain(error: Exception) -> Exception | None:
    """Return the user's mistake, or the lost process, that caused ``error``; None for a bug."""
    # jsonargparse wraps an exception of a class's __init__ in its own message about the types that
    # it tried.
    if isinstance(error, ValueError) and (mistake := _user_error(error)):
        return mistake
    text = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException) or _raised_by_lightning(error):
        if text.startswith("Field batch_size not found"):
            text += " BatchSizeFinder's argument is batch_arg_name=micro_batch_size here."
        return UserError(text)
    if (package := type(error).__module__.partition(".")[0]) in _LOGGING:
        return UserError(f"{package}: {text}")
    if isinstance(error, pickle.UnpicklingError):
        return UserError(f"--ckpt_path: not a checkpoint of lit_llm ({str(error).splitlines()[0]})")
    if isinstance(error, OSError) and (said := told_of_a_path(error)):
        return UserError(said)
    if isinstance(error, ValueError) and "Does not validate against any of the Union" in text:
        return UserError(explain_mistake(text))
    no_memory = isinstance(error, RuntimeError) and re.search(_NO_MEMORY, text)
    if no_memory or isinstance(error, MemoryError):
        return UserError(
            f"this run does not fit in memory ({text[:120]}): lower data.micro_batch_size, "
            "or see lit_llm plan"
        )
    if isinstance(error, RuntimeError) and re.search("EADDRINUSE|ddress already in use", text):
        return UserError(
            f"MASTER_PORT={os.environ.get('MASTER_PORT')}: another process listens there; "
            "set another port"
        )
    if isinstance(error, RuntimeError) and "use_deterministic_algorithms" in text:
        return UserError(f"trainer.deterministic: {text.partition('.')[0]}; set it to warn")
    # torch has no exception type for a lost process. These are the messages of gloo and NCCL.
    gone = "closed by peer|reset by peer|Broken pipe|remote process exited"
    if isinstance(error, RuntimeError) and re.search(gone, text):
        return PeerLost(
            "another process of the run ended: its message gives the reason; "
            "--ckpt_path last resumes the run"
        )
    return None


def _raised_by_lightning(error: Exception) -> bool:
    """Whether a ``raise`` in Lightning's own code made ``error``, so it comes from a check.

    Some mistakes show only during the run and have no exception type of their own: a monitored
    metric that is not logged, an interval longer than the loader, a missing optional package.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not str(error):
        return False
    file = trace.tb_frame.f_code.co_filename
    line = linecache.getline(file, trace.tb_lineno).strip()
    return Path(file).is_relative_to(_LIGHTNING) and line.startswith("raise ")


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError in the chain of exceptions that led to ``error``."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
