"""Keeps the results of ``lit_llm evaluate``, and finds those that are there already."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lit_llm.evaluate.results.fingerprints import (
    settings_fingerprint,
    task_fingerprint,
    template_fingerprint,
)
from lit_llm.evaluate.results.folder import append_history, choose_folder
from lit_llm.evaluate.results.items import items_table
from lit_llm.evaluate.results.measured import task_metrics
from lit_llm.evaluate.results.names import default_name
from lit_llm.evaluate.results.scores import rows_of
from lit_llm.evaluate.run import isolated, metric_rows
from lit_llm.io.atomic import write_text
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

# Settings of the command that change scores or items. The dtype is that of the weights.
_CHANGE_SCORES = ("limit", "cluster_by", "system", "chat_template_kwargs", "reasoning",
                  "reasoning_tokens", "answer_tokens", "repeats")  # fmt: skip
_OF_LM_EVAL = ("results", "versions", "n-shot", "n-samples")


class Keeper:
    """Writes each task's results as soon as it is done.

    Args:
        settings: of the command.
        model: the model.
        tokenizer: its tokenizer.
        loaded: `load_tasks`, not run yet.
        weights: `weights_fingerprint` of the model.
        versions: versions of the packages that results depend on.

    Raises:
        UserError: the named folder holds other results, or a file there is damaged.
    """

    def __init__(
        self,
        settings: argparse.Namespace,
        model: Transformer,
        tokenizer: Tokenizer,
        loaded: Mapping[str, Any],
        weights: str,
        versions: Mapping[str, str],
    ):
        self.settings, self.tokenizer, self.loaded = settings, tokenizer, loaded
        self.template = template_fingerprint(tokenizer, settings.apply_chat_template)
        with isolated():  # a task's code reads its documents
            self.fingerprints = {
                name: {
                    task: task_fingerprint(one, settings.num_fewshot)
                    for task, one in found["tasks"].items()
                }
                for name, found in loaded.items()
            }
        self.runs = {
            name: settings_fingerprint({
                "tasks": tasks, "template": self.template,
                **{key: getattr(settings, key) for key in _CHANGE_SCORES},
            })
            for name, tasks in self.fingerprints.items()
        }  # fmt: skip
        weight = model.embed.weight
        self.evaluation = choose_folder(
            settings.output.expanduser(),
            settings.name or default_name(settings.checkpoint, settings.adapter),
            {
                "weights_sha256": weights,
                "tokenizer_sha256": tokenizer.fingerprint(),
                "generation_sha256": settings_fingerprint(
                    {**tokenizer.generation_config, **model.generation_config}
                ),
                "dtype": str(weight.dtype).removeprefix("torch."),
                "device": weight.device.type,
                "package_versions": dict(versions),
            },
            self.runs,
            named_by_user=settings.name is not None,
        )
        self.evaluation.about = {
            "checkpoint": str(settings.checkpoint),
            "adapter": settings.adapter,
        }

    def kept(self, name: str) -> dict[str, Any] | None:
        """The results of a requested task, if the same model was asked the same before."""
        return self.evaluation.runs.get(name)

    def keep(
        self, name: str, results: Mapping[str, Any], more_rows: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Write the results of a requested task, and a line of history for each metric.

        Args:
            name: of the task.
            results: of `run_task`, with its samples.
            more_rows: rows of the printed table besides those of `metric_rows`.

        Raises:
            UserError: a document has no field ``cluster_by``, or the task has no items.
        """
        rows, tasks = metric_rows(results), self.loaded[name]["tasks"]
        items = items_table(results, tasks, self.tokenizer, self.settings.cluster_by)
        better = results.get("higher_is_better", {})
        found = {
            task: {
                "fingerprint": self.fingerprints[name][task],
                "template_sha256": self.template,
                "num_fewshot": results["n-shot"].get(task),
                "version": results["versions"].get(task),
                "limit": self.settings.limit,
                "metrics": task_metrics(
                    [row for row in rows if row["task"] == task],
                    tasks[task],
                    better.get(task, {}),
                    rows_of(items, task),
                ),
            }
            for task in items["task"].unique().to_pylist()
        }
        run = {
            "fingerprint": self.runs[name],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["lit_llm", *sys.argv[1:]]),
            "rows": [*rows, *more_rows],
            "lm_eval": {key: results.get(key, {}) for key in _OF_LM_EVAL},
        }
        self.evaluation.add(name, run, found, items)
        append_history(self.evaluation.folder.parent, self.evaluation, list(found))

    def write_samples(self, samples: Mapping[str, Any]) -> None:
        """Write ``samples_<task>.jsonl``, a line a document, in lm-eval's own form."""
        for task, found in samples.items():
            lines = "".join(
                json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in found
            )
            write_text(self.evaluation.folder / f"samples_{task}.jsonl", lines)
