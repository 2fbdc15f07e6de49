"""NeptuneLogger: logs offline with Neptune's client.

Neptune's service closed on 2026-03-05; the client still works offline. Lightning removed its own
NeptuneLogger in 2.6.4. `offline.read_offline` and ``lit_llm report`` read the files of this
logger.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.util
import inspect
import logging
import math
import os
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_llm.errors import UserError
from lit_llm.lightning_internals import root_of_calling_trainer
from lit_llm.training.neptune.offline import LOOKALIKE, NOT_FINITE, PREFIX_PATH


class NeptuneLogger(Logger):
    """Logs metrics and hyperparameters with Neptune's client, by default to files.

    Metrics become series ``<prefix>/<name>``, hyperparameters ``<prefix>/hyperparams/<name>``, and
    the end of a run ``<prefix>/status``. Each call is written to the file at once, so a killed
    process loses nothing. A resumed run adds its own container to the same folder, and the reader
    combines all containers. To log anything else that the client supports, use `experiment`:
    ``logger.experiment["eval/score"] = 0.9``.

    Args:
        save_dir: run folder; the data is in ``<save_dir>/.neptune``. None: the folder in the
            environment variable NEPTUNE_DATA_DIRECTORY. If it is not set, ``.neptune`` in the
            ``default_root_dir`` of the Trainer that logs; without a Trainer, or if that is no local
            folder, ``.neptune`` in the working directory.
        name: a readable name of the run.
        tags: words by which the run can be found.
        prefix: group of everything that is logged here.
        mode: ``offline`` writes files, ``debug`` writes nothing; ``async`` and ``sync`` need a
            server for the client, and the client's settings in environment variables.
        client: module with Neptune's interface: ``neptune``, ``minfx.neptune_v2`` or
            ``goodseed.neptune``. The last keeps its data in its own database (GOODSEED_HOME), which
            `read_offline` does not read.

    Raises:
        UserError: the client is not installed.
    """

    def __init__(
        self,
        save_dir: str | Path | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        prefix: str = "training",
        mode: Literal["offline", "async", "sync", "debug"] = "offline",
        client: str = "neptune",
    ):
        super().__init__()
        if not _installed(client):
            mend = (
                "pip install 'lit_llm[neptune]'"
                if client == "neptune"
                else f"pip install {client.split('.')[0]}"
            )
            raise UserError(f"NeptuneLogger client={client}: no such package; {mend}")
        self._save_dir = None if save_dir is None else Path(save_dir)
        self._name, self._tags, self._prefix = name, tags, prefix.strip("/")
        self._mode, self._client = mode, client
        self._run: Any = None
        self._buffered = True  # whether the client must be told to write its buffer to disk
        # (kind, name) -> path in the open run
        self._paths: dict[tuple[str, str], str] = {}
        # path -> type, for the hyperparameters in the open run
        self._types: dict[str, type] = {}

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name or ""

    @property
    def version(self) -> str:
        """Nothing to add to the folder."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """The run folder. It can be set until something is logged."""
        return None if self._save_dir is None else str(self._save_dir)

    @save_dir.setter
    def save_dir(self, folder: str | Path) -> None:
        self._save_dir = Path(folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client's run, which is opened at the first access.

        On all ranks except the first it is an object that does nothing.
        """
        if self._run is None:
            self._run = self._open()
            self._paths, self._types = {}, {}
            # goodseed has no buffer: its ``wait`` has no such argument.
            self._buffered = "disk_only" in inspect.signature(self._run.wait).parameters
            # Reserves the path, so that no metric called "status" can take it.
            self._path("state", "status")
            self._run[PREFIX_PATH] = self._prefix
            self._flush()
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one point to the series of each metric.

        nan and inf go to a separate series of strings, see NOT_FINITE.
        """
        run = self.experiment
        step = None if step is None else int(step)
        # Sorted, so that `loss` comes before `loss/code` and keeps its path.
        for name, value in sorted(metrics.items()):
            number = float(value)
            if math.isfinite(number):
                run[self._path("metric", name)].append(number, step=step)
            else:
                run[self._path("metric", f"{NOT_FINITE}/{name}")].append(str(number), step=step)
        self._flush()

    @rank_zero_only
    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Store each value under its path, for example ``model/hidden_size``, see `flatten`."""
        run = self.experiment
        for name, value in flatten(params).items():
            path = self._path("hyperparameter", f"hyperparams/{name}")
            if self._types.setdefault(path, type(value)) is not type(value):
                # The client refuses to change the type of a value, so the old value is deleted.
                del run[path]
                self._types[path] = type(value)
            run[path] = value
        self._flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log how the run ended, and close the client. Later logging opens a new run."""
        if self._run is None:
            return
        self._run[self._path("state", "status")] = status
        if status == "failed":
            self._run["sys/failed"] = True
        self._run.stop()
        self._run = None

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open client, which has locks and threads.

        A copy of the logger therefore opens its own container.
        """
        return {**self.__dict__, "_run": None}

    def _open(self) -> Any:
        client = importlib.import_module(self._client)
        if self._mode in ("offline", "debug"):
            # The client's info messages name a web page that does not exist, and its own threads.
            logging.getLogger("neptune").setLevel(logging.WARNING)
        given = os.environ.get("NEPTUNE_DATA_DIRECTORY")
        if self._save_dir is None and not given:
            self._save_dir = _trainer_root()
        folder = (
            Path(given or ".neptune") if self._save_dir is None else self._save_dir / ".neptune"
        )
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        # The client takes the folder only from the environment.
        os.environ["NEPTUNE_DATA_DIRECTORY"] = str(folder)
        try:
            return client.init_run(
                mode=self._mode,
                name=self._name,
                tags=self._tags,
                custom_run_id=_run_id(folder),
                # By default the client copies terminal output, source files and the git diff, and
                # polls the hardware.
                source_files=[],
                git_ref=False,
                capture_stdout=False,
                capture_stderr=False,
                capture_traceback=False,
                capture_hardware_metrics=False,
            )
        finally:
            if given is None:
                del os.environ["NEPTUNE_DATA_DIRECTORY"]
            else:
                os.environ["NEPTUNE_DATA_DIRECTORY"] = given

    def _path(self, kind: str, name: str) -> str:
        """The path of ``name`` in the run.

        It is ``name`` itself, unless the path would then be a value and a group at once, see
        LOOKALIKE.
        """
        if (kind, name) not in self._paths:
            path, taken = name, self._paths.values()
            if any(
                path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")
                for other in taken
            ):
                path = name.replace("/", LOOKALIKE) if "/" in name else name + LOOKALIKE
            self._paths[kind, name] = path
        return f"{self._prefix}/{self._paths[kind, name]}".lstrip("/")

    def _flush(self) -> None:
        if self._buffered:
            self._run.wait(disk_only=True)


def flatten(params: Mapping[str, Any] | Namespace) -> dict[str, bool | int | float | str]:
    """Hyperparameters by path, converted to the types that Neptune supports.

    - Mappings, namespaces and dataclasses become groups.
    - NumPy and torch scalars become numbers.
    - Enum members become their names; classes and functions their qualified names.
    - nan and inf become text.
    - Integers beyond 32 bits become floats, or text if the float is not exact.
    - None, lists, arrays, paths, dtypes and all others become text: lists and sets as Python prints
      lists, sets sorted.
    """
    leaves: dict[str, bool | int | float | str] = {}
    for key, value in _plain(params).items():
        name = key.strip("/") or repr(key)  # the client drops values without a name
        if isinstance(value, dict) and value:
            leaves |= {f"{name}/{inner}": leaf for inner, leaf in flatten(value).items()}
        elif isinstance(value, int) and not -(2**31) <= value < 2**31:
            leaves[name] = (
                float(value) if abs(value) < 2**1023 and int(float(value)) == value else str(value)
            )
        elif isinstance(value, float) and not math.isfinite(value):
            leaves[name] = str(value)
        else:
            leaves[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return leaves


def _plain(value: Any) -> Any:
    """``value`` converted to None, bool, int, float, str, or lists and dicts of these."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or torch
    if value is None:
        return None
    if isinstance(value, enum.Enum):
        return value.name
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            # Subclasses may print in another way.
            return kind(value)
    if isinstance(value, Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(inner) for inner in sorted(value, key=repr)]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"  # without the address in memory
    return str(value)


def _trainer_root() -> Path | None:
    """``default_root_dir`` of the calling Trainer; None without a Trainer, and for a remote URL."""
    root = root_of_calling_trainer()
    return None if root is None or "://" in root else Path(root)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _run_id(folder: Path) -> str:
    """The run's identifier, stored in ``folder``.

    By this identifier a server recognises that the parts of a resumed run belong together.
    """
    file = folder / "run_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8")
