"""Load lm-eval's tasks and run them: the two steps that the command and the callback share."""

from __future__ import annotations

import difflib
import io
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_llm.errors import UserError
from lit_llm.evaluate.tasks import LOCAL_TASKS, local_tasks

if TYPE_CHECKING:
    from lit_llm.evaluate.harness import HarnessLM

# lm-eval's own: its numbers depend on them where a task draws examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
_BOOTSTRAP = 1000  # resamples for the standard error of metrics that have no formula: 2% exact


def load_tasks(
    names: Sequence[str], include: Sequence[str | Path] = (), cache_dir: Path | None = None
) -> dict[str, Mapping[str, Any]]:
    """lm-eval's tasks with their data: one ``TaskManager.load`` result for each name (a task, a
    group or a tag).

    Args:
        names: our local tasks, those of ``include``, and lm-eval's own.
        include: folders of lm-eval YAML files, or such files (their folder is read).
        cache_dir: where the local tasks are kept. None: $LIT_LLM_CACHE or ~/.cache/lit_llm.

    Raises:
        UserError: lm_eval is not installed, an unknown name (the nearest are told), no such folder
            or file, or data that cannot be had.
    """
    if find_spec("lm_eval") is None:
        raise UserError("evaluation needs lm-eval: pip install 'lit_llm[eval]'")
    if not names:
        raise UserError(f"tasks: name at least one, such as {LOCAL_TASKS[0]}")
    folders = [_folder(Path(path).expanduser()) for path in include]
    if set(names) & set(LOCAL_TASKS):
        folders.append(local_tasks(cache_dir))

    from lm_eval.tasks import TaskManager

    with _contained():
        manager = TaskManager(include_defaults=False, include_path=folders)
        if not set(names) <= set(manager.all_tasks):
            # Only now: to read the index of lm-eval's own tasks takes ten seconds.
            manager = TaskManager(include_defaults=True, include_path=folders)
        for name in names:
            if name not in manager.all_tasks:
                known = sorted({*LOCAL_TASKS, *manager.all_tasks})
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
                raise UserError(
                    f"tasks: no task {name!r}; " + (f"did you mean "
                                                    f"{' or '.join(near)}?" if near else
                    f"local ones are {', '.join(LOCAL_TASKS)}, others are lm-eval's (lm_eval ls "
                    f"tasks)")
                )  # fmt: skip
        loaded = {}
        for name in names:
            try:
                loaded[name] = manager.load([name])
            except Exception as error:  # a task is code and a download: it can raise anything
                raise UserError(f"task {name} cannot be loaded: {one_line(error)}") from error
    return loaded


def run_task(
    lm: HarnessLM,
    loaded: Mapping[str, Any],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    log_samples: bool = False,
) -> dict[str, Any]:
    """What ``lm_eval.evaluate`` gives for one entry of `load_tasks`, the same on every rank.

    All ranks must call it together. The state of Python's, numpy's and torch's generators is left
    as it was.

    Args:
        lm: the model.
        loaded: tasks, which may be run again later.
        limit: the first documents of each task alone. None: all.
        num_fewshot: worked examples before each question, where a task does not fix them to 0.
            None: the task's.
        apply_chat_template: ask in the model's chat format, examples as turns.
        log_samples: keep every document's prompt and answer, under "samples".
    """
    from lm_eval.evaluator import evaluate

    with _contained():
        for task in loaded["tasks"].values():
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config("num_fewshot", num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(_OTHER_SEED)
        results = evaluate(
            lm,
            loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=log_samples,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
        )
    assert results is not None  # HarnessLM calls itself the first of one rank everywhere
    return dict(results)


def metric_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"task", "metric", "value", "stderr" or None, "n": documents or None} of every number in
    ``results``.

    lm-eval names a metric with the filter its answers went through; the filter "none" is left out.
    """
    rows = []
    for task, metrics in results["results"].items():
        documents = results["n-samples"].get(task, {}).get("effective")
        for key, value in metrics.items():
            name, _, filtered_by = key.partition(",")
            if not filtered_by or name.endswith("_stderr"):
                continue
            stderr = metrics.get(f"{name}_stderr,{filtered_by}")
            rows.append(
                {
                    "task": task,
                    "metric": name if filtered_by == "none" else f"{name},{filtered_by}",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, float) else None,
                    "n": documents,
                }
            )
    return rows


def one_line(error: Exception) -> str:
    """Kind and message of an error, short enough for a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:300] + ' ...'}"


def _folder(path: Path) -> Path:
    if path.is_dir():
        if not any(path.rglob("*.yaml")):
            raise UserError(f"include: {path} holds no .yaml file with a task")
        return path
    if not path.is_file() or path.suffix != ".yaml":
        raise UserError(f"include: {path} is neither a folder nor a .yaml file")
    return path.parent


@contextmanager
def _contained() -> Iterator[None]:
    """Keep lm-eval's doings inside: its seeds, the bars it draws on every rank, what it prints on
    stdout."""
    states = random.getstate(), np.random.get_state(), os.environ.get("DISABLE_MULTIPROC")
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    random.seed(_PYTHON_SEED)
    np.random.seed(_OTHER_SEED)
    os.environ["DISABLE_MULTIPROC"] = (
        "1"  # its standard errors fork a pool, which a training process must not
    )
    try:
        with (
            torch.random.fork_rng(devices=[]),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            torch.default_generator.manual_seed(
                _OTHER_SEED
            )  # torch.manual_seed would touch the device's too
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        logger.setLevel(level)
        if states[2] is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = states[2]
