"""``evaluations/<name>/``: ``results.json`` and ``items.parquet`` of one model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lit_llm.errors import UserError
from lit_llm.io.atomic import replacing, write_text

SCHEMA_VERSION = 1
RESULTS, ITEMS, HISTORY = "results.json", "items.parquet", "history.jsonl"


@dataclass
class Evaluation:
    """What one folder holds.

    Attributes:
        folder: the folder.
        model: what must be equal for results to be reused: fingerprints of weights, tokenizer and
            generation settings, dtype and device, versions of packages.
        about: what is told of the model: checkpoint, adapter.
        runs: name of a requested task (or group, or tag) -> its settings and fingerprint, lm-eval's
            results, rows of the table, and names of the single tasks.
        tasks: name of a single task -> fingerprints, and "metrics": metric -> value, interval,
            aggregation, direction, items, clusters.
        items: the rows, see `items_table`.
    """

    folder: Path
    model: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: pa.Table | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def accepts(self, model: Mapping[str, Any], runs: Mapping[str, str]) -> bool:
        """Whether results of ``model`` for these runs (name -> fingerprint) can be added.

        They can if the folder is of the same model, and holds none of the runs in another form.
        """
        return self.model == model and all(
            self.runs[name]["fingerprint"] == fingerprint
            for name, fingerprint in runs.items()
            if name in self.runs
        )

    def add(
        self, name: str, run: dict[str, Any], tasks: dict[str, dict[str, Any]], items: pa.Table
    ) -> None:
        """Add a run's results, and write the folder.

        A task that another run measured too is replaced.
        """
        if self.items is not None:
            others = pc.invert(pc.is_in(self.items["task"], pa.array(list(tasks), pa.string())))
            items = pa.concat_tables([self.items.filter(others), items], promote_options="default")
        self.items = items
        self.runs[name] = run
        self.tasks |= tasks
        self.write()

    def write(self) -> None:
        """Write both files, items first: what results.json names is there."""
        assert self.items is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / ITEMS) as part:
            pq.write_table(self.items, part, compression="zstd")
        content = {
            "schema_version": SCHEMA_VERSION,
            **self.about,
            "model": self.model,
            "tasks": self.tasks,
            "runs": self.runs,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        write_text(self.folder / RESULTS, text + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """Read a folder.

    Raises:
        UserError: no such folder, or a file that is missing, damaged, or of a later version.
    """
    file, rows = folder / RESULTS, folder / ITEMS
    again = "run lit_llm evaluate again"
    if not file.is_file():
        raise UserError(f"{folder}: holds no {RESULTS}; lit_llm evaluate writes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{file}: written by a later lit_llm (schema version {version}, this one reads "
                f"{SCHEMA_VERSION}); update lit_llm"
            )
        found = Evaluation(
            folder,
            content["model"],
            {key: content[key] for key in ("checkpoint", "adapter")},
            content["runs"],
            content["tasks"],
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: is damaged ({type(error).__name__}: {error}); {again}") from None
    if not rows.is_file():
        raise UserError(f"{rows}: is missing; {again}")
    try:
        found.items = pq.read_table(rows)
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{rows}: cannot be read ({said}); {again}") from None
    for column in ("task", "filter", "id", "cluster"):
        if column not in found.items.column_names:
            raise UserError(f"{rows}: has no column {column!r}; {again}")
    return found


def choose_folder(
    parent: Path,
    name: str,
    model: Mapping[str, Any],
    runs: Mapping[str, str],
    named_by_user: bool,
) -> Evaluation:
    """The folder for these results: a new one, or one that holds results of the same model.

    Results of other weights, or of a task in another form, are never replaced. A default name gets
    a number instead.

    Args:
        parent: folder of all evaluations.
        name: wanted name.
        model: see `Evaluation`.
        runs: requested tasks -> fingerprints.
        named_by_user: whether the user chose the name.

    Raises:
        UserError: the user chose a name whose folder holds other results.
    """
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not (folder / RESULTS).exists():
            return Evaluation(folder, dict(model))
        found = read_evaluation(folder)
        if found.accepts(model, runs):
            return found
        if named_by_user:
            other = sorted(key for key in model if found.model.get(key) != model[key])
            what = f"another model ({', '.join(other)})" if other else "other settings of a task"
            raise UserError(f"--name {name}: {folder} holds results of {what}; choose another name")
        number += 1


def append_history(parent: Path, evaluation: Evaluation, names: list[str]) -> None:
    """Add a line for each metric of the named tasks to ``history.jsonl``."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with open(parent / HISTORY, "a", encoding="utf-8") as file:
        for name in names:
            for metric, values in evaluation.tasks[name]["metrics"].items():
                line = {
                    "date": now,
                    "evaluation": evaluation.name,
                    "checkpoint": evaluation.about.get("checkpoint"),
                    "weights_sha256": evaluation.model["weights_sha256"],
                    "task": name,
                    "metric": metric,
                    **{key: values[key] for key in ("value", "low", "high", "items")},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
