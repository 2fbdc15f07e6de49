"""RetentionCheck: measures how much knowledge of the base is lost in finetuning."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.corpus.reading.rows import json_rows
from lit_llm.data.base import TokenDataModule
from lit_llm.errors import UserError
from lit_llm.io.atomic import write_text
from lit_llm.models.generation.generate import generate, room_for
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.transformer import Transformer
from lit_llm.settings.ranges import Range, check_ranges

_DEFAULT_QUESTIONS = Path(__file__).with_name("questions.jsonl")


RANGES: dict[str, Range] = {
    "count": Range(1, 1e6), "max_new_tokens": Range(1, 1e9),
}  # fmt: skip
"""Ranges of the numbers of `RetentionCheck`."""


class RetentionCheck(L.Callback):
    """Asks general questions before and after finetuning, and writes ``retention.json``.

    The file says how many of the questions that the base answered correctly are still answered
    correctly: {"right_before", "still_right", "questions": [{"prompt", "expected", "before",
    "after", "right_before", "right_after"}]}. Answers are generated greedily. An answer is correct
    if it matches the question's pattern, without regard to letter case. A resumed run keeps the
    base's answers of the first run.

    Args:
        questions: JSONL of {"prompt", "expected": regular expression}. None: simple questions that
            come with lit_llm.
        count: largest number of questions that are asked again: the first ones that the base
            answers correctly.
        max_new_tokens: largest length of an answer.

    Raises:
        UserError: the questions file cannot be read.
    """

    def __init__(self, questions: str | None = None, count: int = 20, max_new_tokens: int = 32):
        check_ranges(locals(), RANGES, "RetentionCheck: ")
        self.count, self.max_new_tokens = count, max_new_tokens
        self.questions = _read(questions)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the base; a resumed run reads the base's answers from the file."""
        self.file = Path(trainer.default_root_dir) / "retention.json"
        if trainer.global_step:
            try:
                self.rows = json.loads(self.file.read_text(encoding="utf-8"))["questions"]
            except (OSError, ValueError, KeyError):
                raise UserError(
                    f"{self.file}: the base's answers are missing; start a new run"
                ) from None
            return
        answers = self._ask(trainer, pl_module, [row["prompt"] for row in self.questions])
        rows = [
            {**row, "before": answer, "right_before": _right(answer, row["expected"])}
            for row, answer in zip(self.questions, answers, strict=True)
        ]
        # Keep all wrong answers, and the first ``count`` correct ones.
        followed = [row for row in rows if row["right_before"]][: self.count]
        self.rows = [row for row in rows if row in followed or not row["right_before"]]
        self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask again the questions that the base answered correctly."""
        known = [row for row in self.rows if row["right_before"]]
        answers = self._ask(trainer, pl_module, [row["prompt"] for row in known])
        for row, answer in zip(known, answers, strict=True):
            row |= {"after": answer, "right_after": _right(answer, row["expected"])}
        self._write(trainer)
        kept = sum(row["right_after"] for row in known)
        rank_zero_info(
            f"retention: {kept} of {len(known)} questions that the base answered correctly are "
            "still answered correctly"
        )

    def _ask(
        self, trainer: L.Trainer, pl_module: L.LightningModule, questions: list[str]
    ) -> list[str]:
        model, data = getattr(pl_module, "network", None), getattr(trainer, "datamodule", None)
        if not isinstance(model, Transformer) or not isinstance(data, TokenDataModule):
            raise UserError(
                "RetentionCheck needs a module with a Transformer and a data module of lit_llm"
            )
        if not questions:
            return []
        prompts = [data.encode_prompt(question) for question in questions]
        with trainer.precision_plugin.forward_context():
            answers = generate(
                model,
                prompts,
                room_for(model, prompts, self.max_new_tokens),
                GREEDY,
                stop_ids=data.stop_ids,
            )
        return [data.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        known = [row for row in self.rows if row["right_before"]]
        asked_again = [row for row in known if "right_after" in row]
        content: dict[str, Any] = {
            "right_before": len(known),
            "still_right": sum(row["right_after"] for row in asked_again) if asked_again else None,
            "questions": self.rows,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _right(answer: str, expected: str) -> bool:
    return re.search(expected, answer, re.IGNORECASE) is not None


def _read(path: str | None) -> list[dict[str, Any]]:
    file = _DEFAULT_QUESTIONS if path is None else Path(path).expanduser()
    questions = []
    for number, row in json_rows(file):
        try:
            re.compile(row["expected"])
            questions.append({"prompt": str(row["prompt"]), "expected": row["expected"]})
        except (ValueError, KeyError, TypeError, re.error) as error:
            raise UserError(
                f"{file}:{number}: needs 'prompt' and a pattern 'expected' ({error})"
            ) from None
    return questions
