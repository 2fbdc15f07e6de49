"""Loading and running lm-eval tasks, for the command and the callback."""

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
from lit_llm.evaluate.tasks import CODE_TASKS, LOCAL_TASKS, local_tasks

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from lit_llm.evaluate.box.humaneval import CodeRuns
    from lit_llm.evaluate.harness import HarnessLM

# lm-eval's default seeds. Results depend on them if a task samples examples.
_PYTHON_SEED, _OTHER_SEED = 0, 1234
# Bootstrap samples for the standard error of metrics without a formula; error about 2%
_BOOTSTRAP = 1000


def load_tasks(
    names: Sequence[str],
    include: Sequence[str | Path] = (),
    cache_dir: Path | None = None,
    code: CodeRuns | None = None,
) -> dict[str, Mapping[str, Any]]:
    """Load lm-eval tasks with their data.

    Args:
        names: local tasks, tasks of ``include``, and lm-eval's own tasks.
        include: folders of lm-eval YAML files, or such files (their whole folder is read).
        cache_dir: folder for the local tasks. None: $LIT_LLM_CACHE or ~/.cache/lit_llm.
        code: how programs of code tasks are run. None: such tasks have documents, and do not run.

    Returns:
        One ``TaskManager.load`` result per name (a task, a group or a tag).

    Raises:
        UserError: lm_eval is not installed, an unknown name (the message names the nearest ones), a
            missing folder or file, data that cannot be loaded, or a task of lm-eval that runs
            programs outside the box.
    """
    if find_spec("lm_eval") is None:
        raise UserError("evaluation needs lm-eval: pip install 'lit_llm[eval]'")
    if not names:
        raise UserError(f"tasks: name at least one, such as {LOCAL_TASKS[0]}")
    for name in names:
        if "," in name:  # lm-eval's own command takes such lists
            raise UserError(f"tasks: no task {name!r}; give {name.replace(',', ' ')}")
    folders = [_folder(Path(path).expanduser()) for path in include]
    if set(names) & set(LOCAL_TASKS):
        folders.append(local_tasks(cache_dir))

    from lm_eval.tasks import TaskManager

    with isolated():
        manager = TaskManager(include_defaults=False, include_path=folders)
        known = {*CODE_TASKS, *manager.all_tasks}
        if not set(names) <= known:
            # Loaded only if needed: the index of lm-eval's own tasks takes ten seconds.
            manager = TaskManager(include_defaults=True, include_path=folders)
            known = {*CODE_TASKS, *LOCAL_TASKS, *manager.all_tasks}
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
                raise UserError(
                    f"tasks: no task {name!r}; "
                    + (
                        f"did you mean {' or '.join(near)}?"
                        if near
                        else f"local ones are {', '.join(LOCAL_TASKS)}, "
                        "others are lm-eval's (lm_eval ls tasks)"
                    )
                )
        loaded = {}
        for name in names:
            try:
                loaded[name] = _load(manager, name, code)
            except UserError:
                raise
            # A task runs code and downloads data, so it can raise any exception
            except Exception as error:
                raise UserError(f"task {name} cannot be loaded: {one_line(error)}") from error
    return loaded


def _load(manager: TaskManager, name: str, code: CodeRuns | None) -> Mapping[str, Any]:
    if name in CODE_TASKS:
        from lit_llm.evaluate.box.humaneval import code_task

        return code_task(name, code)
    found: Mapping[str, Any] = manager.load([name])
    for task in found["tasks"].values():
        if task.get_config("unsafe_code"):
            raise UserError(
                f"task {name} runs programs that the model writes outside the box; those that run "
                f"in it are {', '.join(CODE_TASKS)}"
            )
    return found


def run_task(
    lm: HarnessLM,
    loaded: Mapping[str, Any],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system: str | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Result of ``lm_eval.evaluate`` for one entry of `load_tasks`, the same on every rank.

    All ranks must call it together. The states of the random generators of Python, numpy and torch
    are restored.

    Args:
        lm: the model.
        loaded: tasks; they may be run again later.
        limit: number of documents per task, from the first on. None: all.
        num_fewshot: worked examples before each question, unless the task fixes them to 0. None:
            the task's number.
        apply_chat_template: ask in the model's chat format, with examples as turns.
        system: system message before each question.
        log_samples: keep the prompt and answer of every document under "samples".
    """
    from lm_eval.evaluator import evaluate

    with isolated():
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
            system_instruction=system,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
        )
    # HarnessLM reports rank 0 of 1 on every rank, so every rank gets results
    assert results is not None
    return dict(results)


def metric_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per number in ``results``.

    A row is {"task", "metric", "value", "stderr" or None, "n": documents or None}. lm-eval adds the
    name of the answer filter to a metric's name. The filter "none" is left out.
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
    """Type and message of an error, shortened to one line."""
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
def isolated() -> Iterator[None]:
    """Keep side effects of lm-eval inside: seeds, progress bars of every rank, output on stdout."""
    states = random.getstate(), np.random.get_state(), os.environ.get("DISABLE_MULTIPROC")
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    random.seed(_PYTHON_SEED)
    np.random.seed(_OTHER_SEED)
    # Standard errors would otherwise fork a process pool, which a training process must not do.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with (
            torch.random.fork_rng(devices=[]),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            # The CPU generator only: torch.manual_seed would seed the device's generator too.
            torch.default_generator.manual_seed(_OTHER_SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        logger.setLevel(level)
        if states[2] is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = states[2]
