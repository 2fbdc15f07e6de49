"""GenerationCheck: answers held-out questions after validations, and scores the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.data.blocks import IGNORE
from lit_llm.data.instructions import InstructionDataModule
from lit_llm.data.trees import Tree
from lit_llm.errors import UserError
from lit_llm.evaluate.answers import SCORES, repeats
from lit_llm.evaluate.chosen_by import set_values
from lit_llm.evaluate.questions import Question, evenly_spaced, read_questions
from lit_llm.io.jsonl import keep_until
from lit_llm.models.generation.generate import generate, room_for
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.transformer import Transformer
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.strategy import is_sharded

RANGES: dict[str, Range] = {
    "count": Range(2, 1e6), "max_new_tokens": Range(1, 1e9), "batch_size": Range(1, 1e5),
}  # fmt: skip
"""Ranges of the numbers of `GenerationCheck`."""


class GenerationCheck(L.Callback):
    """Answers held-out questions greedily after each validation of a fit, and scores the answers.

    It logs, and sets in the Trainer's ``callback_metrics``:

    - ``generation/score``: mean score of one half of the questions. `Checkpoint` may choose the
      best checkpoint by it: ``monitor="generation/score", mode="max"``;
    - ``generation/other_score``: mean score of the other half, which nothing was chosen by;
    - ``generation/cut``: share of answers that reached ``max_new_tokens`` or the context's end;
    - ``generation/repeated``: share of answers that end in a loop, see `repeats`;
    - ``generation/copied``: share of answers that are a training answer, word for word.

    ``generations.jsonl`` gets a line per answer: {"step", "prompt", "answer", "score", "by",
    "half", "cut", "repeated", "copied"}. A resumed run replaces the lines of the steps that it
    repeats. With a sharded model all processes generate, otherwise the first one.

    Args:
        questions: JSONL of {"prompt": text, or "messages"; and one of "exact", "contains",
            "pattern", "rouge_l" or "format"}; see `lit_llm.evaluate.answers`. None: prompts of the
            validation split, whose answers are compared by ROUGE-L.
        count: largest number of questions, evenly spaced in the file.
        max_new_tokens: largest length of an answer.
        batch_size: questions that are answered together.

    Raises:
        UserError: a row of the file that cannot be used, with its line; a module without a
            Transformer or other data than `InstructionDataModule`'s; fewer than two questions.
    """

    def __init__(
        self,
        questions: str | None = None,
        count: int = 32,
        max_new_tokens: int = 128,
        batch_size: int = 8,
    ):
        check_ranges(locals(), RANGES, "GenerationCheck: ")
        self.questions, self.count = questions, count
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._asked: list[Question] = []
        self._learnt: set[int] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the questions, so that a mistake is reported before the first step."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(getattr(pl_module, "network", None), Transformer) or not isinstance(
            data, InstructionDataModule
        ):
            raise UserError(
                "GenerationCheck needs a module with a Transformer and InstructionDataModule"
            )
        found = (
            read_questions(Path(self.questions).expanduser(), data.chat.prompt_ids)
            if self.questions
            else _held_out(data)
        )
        self._asked = evenly_spaced(found, self.count)
        if len(self._asked) < 2:
            raise UserError("GenerationCheck: needs at least two questions, one for each half")
        self._learnt = _answers(data)
        self.file = Path(trainer.default_root_dir) / "generations.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the questions."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self._asked:
            return
        rows: list[dict[str, Any]] = []
        if trainer.is_global_zero or is_sharded(trainer):
            rows = self._ask(trainer, pl_module)
        # Every process gets the metrics: they decide together whether to save.
        metrics = trainer.strategy.broadcast(_metrics(rows) if rows else {})
        set_values(trainer, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if trainer.is_global_zero:
            self._write(rows)
            said = ", ".join(f"{name[11:]} {value:.2f}" for name, value in metrics.items())
            rank_zero_info(f"step {trainer.global_step}: {len(rows)} answers: {said}")

    def _ask(self, trainer: L.Trainer, pl_module: Any) -> list[dict[str, Any]]:
        model, data = pl_module.network, trainer.datamodule  # type: ignore[attr-defined]
        rows = []
        for begin in range(0, len(self._asked), self.batch_size):
            some = self._asked[begin : begin + self.batch_size]
            prompts = [question.ids for question in some]
            room = room_for(model, prompts, self.max_new_tokens)
            with trainer.precision_plugin.forward_context():
                answers = generate(model, prompts, room, GREEDY, stop_ids=data.stop_ids)
            for place, (question, ids, limit) in enumerate(
                zip(some, answers, room, strict=True), begin
            ):
                text = data.tokenizer.decode(ids, skip_special_tokens=True)
                rows.append(
                    {
                        "step": trainer.global_step,
                        "prompt": question.text,
                        "answer": text,
                        "score": SCORES[question.key](text, question.expected),
                        "by": question.key,
                        "half": place % 2,
                        "cut": len(ids) == limit,
                        "repeated": repeats(ids),
                        "copied": _hash(np.array(ids, np.int32)) in self._learnt,
                    }
                )
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    def mean(key: str, of: list[dict[str, Any]]) -> float:
        return sum(float(row[key]) for row in of) / len(of)

    halves = [[row for row in rows if row["half"] == half] for half in (0, 1)]
    return {
        "generation/score": mean("score", halves[0]),
        "generation/other_score": mean("score", halves[1]),
        **{f"generation/{key}": mean(key, rows) for key in ("cut", "repeated", "copied")},
    }


def _held_out(data: InstructionDataModule) -> list[Question]:
    """The first answer of each validation tree, behind the context that it is learnt in."""
    questions = []
    for tree in data.examples("validation"):
        run = next(_runs(tree), None)
        if run is not None:
            first = int(run[0])
            seen = np.arange(first + 1)[tree.until[: first + 1] > first]
            ids = tree.input_ids[seen].tolist()
            expected = data.tokenizer.decode(tree.labels[run].tolist(), skip_special_tokens=True)
            questions.append(Question(ids, data.tokenizer.decode(ids), "rouge_l", expected))
    return questions


def _answers(data: InstructionDataModule) -> set[int]:
    """Hashes of all training answers, without the token that ends a turn."""
    stops = list(data.stop_ids)
    found = set()
    for tree in data.examples("train"):
        for run in _runs(tree):
            ids = tree.labels[run]
            found.add(_hash(ids[:-1] if ids[-1] in stops else ids))
    return found


def _hash(ids: np.ndarray) -> int:
    return hash(ids.tobytes())


def _runs(tree: Tree) -> Iterator[np.ndarray]:
    """Yield the places of the labels of each answer: neighbours on one path."""
    places = np.flatnonzero(tree.labels != IGNORE)
    if len(places):
        new = (np.diff(places) > 1) | (np.diff(tree.position[places]) != 1)
        yield from np.split(places, np.flatnonzero(new) + 1)
