"""ForgettingCheck: measures during a finetuning what it takes from the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_llm.data.base import TokenDataModule
from lit_llm.errors import UserError
from lit_llm.evaluate.answers import SCORES
from lit_llm.evaluate.chosen_by import drop_values, set_values
from lit_llm.evaluate.forgetting.base import Base
from lit_llm.evaluate.forgetting.divergence import divergence, likeliest
from lit_llm.evaluate.forgetting.paired import paired_change
from lit_llm.evaluate.forgetting.rehearsal import rehearsal_cost
from lit_llm.evaluate.forgetting.task_items import Scores, item_scores
from lit_llm.evaluate.questions import Question, evenly_spaced, read_questions
from lit_llm.evaluate.run import load_tasks, one_line, run_task
from lit_llm.io.atomic import write_text
from lit_llm.models.generation.generate import generate, room_for
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.lora import lora_layers, without_updates
from lit_llm.models.transformer import Transformer
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.callbacks.checkpoint import Checkpoint
from lit_llm.training.strategy import is_sharded

_GENERAL = Path(__file__).with_name("questions.jsonl")
QUESTIONS = "questions/score"
"""Name of the questions' score beside those of the tasks, "<task>/<metric>"."""

RANGES: dict[str, Range] = {
    "count": Range(1, 1e6), "max_new_tokens": Range(1, 1e9), "every": Range(0, 1e9),
    "limit": Range(1, 1e9), "num_fewshot": Range(0, 1e4), "max_batch_tokens": Range(1, 1e9),
}  # fmt: skip
"""Ranges of the numbers of `ForgettingCheck`."""


class ForgettingCheck(L.Callback):
    """Compares the model with its base before, during and after a finetuning.

    Measured are:

    - general questions, answered greedily, and scores of lm-eval tasks. Each item is compared with
      the base's own score of the same item; the change has an interval of 95%, see
      `paired_change`;
    - the Kullback-Leibler divergence per token from the base to the model, in nats, at the tokens
      of the base's own answers to the questions; see `divergence`.

    It logs, and sets in the Trainer's ``callback_metrics``, ``forgetting/kl``,
    ``forgetting/questions/score`` and ``forgetting/<task>/<metric>``: the change of the mean score,
    below 0 if something was forgotten. ``forgetting.json`` holds all measurements and intervals,
    the answers before and after, the step of the weights in ``final/``, and what rehearsal costs.
    ``forgetting-base.pt`` keeps the base's, which a resumed run needs. With LoRA the base is the
    model without its updates, and a resumed run measures it again if the file is missing.

    Args:
        tasks: lm-eval tasks, see ``load_tasks``. None: the questions alone.
        questions: JSONL of {"prompt": text, or "messages"; and one of "exact", "contains",
            "pattern", "rouge_l" or "format"}; see `lit_llm.evaluate.answers`. None: simple
            questions that come with lit_llm, none of which is rehearsed (``data.rehearsal``).
        count: largest number of questions, evenly spaced in the file.
        max_new_tokens: largest length of an answer.
        every: validations between two measurements. 0: only before and after training.
        limit: number of documents per task, from the first on. None: all.
        include: folders of lm-eval YAML files, or such files.
        num_fewshot: worked examples before each question of a task. None: the task's number.
        max_batch_tokens: most tokens per batch of a task, including padding.

    Raises:
        UserError: before training, for a question or task that cannot be used, an unsuitable
            module or data module, or a resumed run without the base's measurements.
    """

    def __init__(
        self,
        tasks: list[str] | None = None,
        questions: str | None = None,
        count: int = 48,
        max_new_tokens: int = 32,
        every: int = 1,
        limit: int | None = None,
        include: list[str] | None = None,
        num_fewshot: int | None = None,
        max_batch_tokens: int = 4096,
    ):
        check_ranges(locals(), RANGES, "ForgettingCheck: ")
        self.tasks, self.limit, self.num_fewshot = tasks or [], limit, num_fewshot
        self.questions_file = _GENERAL if questions is None else Path(questions).expanduser()
        self.count, self.max_new_tokens, self.every = count, max_new_tokens, every
        self.include, self.max_batch_tokens = include or [], max_batch_tokens
        self._loaded: dict[str, Mapping[str, Any]] = {}
        self._questions: list[Question] = []
        self._validations = 0
        self._base: Base | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the tasks, so that a mistake is reported before the first step."""
        if stage == "fit" and self.tasks:
            self._loaded = load_tasks(self.tasks, self.include)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the base; a resumed run reads its measurements from the file."""
        data: Any = getattr(trainer, "datamodule", None)
        model = getattr(pl_module, "network", None)
        if not isinstance(model, Transformer) or not isinstance(data, TokenDataModule):
            raise UserError(
                "ForgettingCheck needs a module with a Transformer and a data module of lit_llm"
            )
        self._questions = _questions(self.questions_file, self.count, data, model)
        folder = Path(trainer.default_root_dir)
        self.file, self._base_file = folder / "forgetting.json", folder / "forgetting-base.pt"
        self._found: dict[str, Any] = {"steps": [], "rehearsal": rehearsal_cost(data)}
        self._base = None
        if trainer.global_step:
            self._base = Base.read(self._base_file, self._settings())
            self._found["steps"] = self._steps_until(trainer.global_step)
        if self._base is None:
            self._base = self._measure_base(trainer, model)
            if trainer.is_global_zero:
                self._base.write(self._base_file)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, if it is due."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not fitting or trainer.global_step == 0 or self._base is None:
            return
        drop_values(trainer, "forgetting/")
        self._validations += 1
        if self.every and self._validations % self.every == 0:
            self._measure(trainer, pl_module, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the weights that ``final/`` holds, and tell what they forgot."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        origins = [c.final_weights.origin for c in callbacks if isinstance(c, Checkpoint)]
        step = next((o.global_step for o in origins if o is not None), trainer.global_step)
        if self._found.get("items_step") != step:
            self._measure(trainer, pl_module, step)
        self._found["final_step"] = step
        self._write(trainer)
        row = next(row for row in self._found["steps"] if row["step"] == step)
        rank_zero_info(f"forgetting, of the weights of step {step}: {_said(row)}")

    def _settings(self) -> dict[str, Any]:
        return {
            "questions": [[q.text, q.key, q.expected] for q in self._questions],
            "max_new_tokens": self.max_new_tokens,
            "tasks": self.tasks,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
        }

    def _measure_base(self, trainer: L.Trainer, model: Transformer) -> Base:
        if not trainer.global_step:
            return self._ask_base(trainer, model)
        trains_whole = model.lora is not None and model.lora.train_modules
        if not lora_layers(model) or trains_whole:
            raise UserError(
                f"{self._base_file}: the base's measurements are missing; start a new run, or "
                "leave ForgettingCheck out"
            )
        with without_updates(model):
            return self._ask_base(trainer, model)

    def _ask_base(self, trainer: L.Trainer, model: Transformer) -> Base:
        with trainer.precision_plugin.forward_context():
            answers, texts, scores = self._answer(trainer, model)
            likely = likeliest(model, self._rows(answers)) if _takes_part(trainer) else []
            for name in self._loaded:
                scores |= self._run_task(trainer, model, name)
        return Base(self._settings(), answers, texts, likely, scores)

    def _measure(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        base, model = self._base, pl_module.network
        assert base is not None
        with trainer.precision_plugin.forward_context():
            _, texts, scores = self._answer(trainer, model)
            kl, tokens = (
                divergence(model, self._rows(base.answers), base.likeliest)
                if _takes_part(trainer)
                else (0.0, 0)
            )
            for name in self._loaded:
                try:
                    scores |= self._run_task(trainer, model, name)
                except Exception as error:
                    # A task runs foreign code. A failure there must not end the training.
                    rank_zero_warn(
                        f"ForgettingCheck: step {step}: {name} failed, training continues: "
                        f"{one_line(error)}"
                    )
        changes = {name: asdict(paired_change(base.scores[name], scores[name])) for name in scores}
        row = {"step": step, "kl": kl, "kl_tokens": tokens, "changes": changes}
        # Every process gets the values of the first one: they decide together whether to save.
        row = trainer.strategy.broadcast(row)
        others = [other for other in self._found["steps"] if other["step"] != step]
        self._found |= {
            "steps": sorted([*others, row], key=lambda row: row["step"]),
            "items_step": step,
            "items": {
                name: {"before": list(base.scores[name].values()), "after": list(found.values())}
                for name, found in scores.items()
            },
        }
        if _takes_part(trainer):
            self._found["questions"] = [
                {"prompt": q.text, "by": q.key, "expected": q.expected, "before": old, "after": new,
                 "score_before": before, "score_after": after}
                for q, old, new, before, after in zip(
                    self._questions, base.texts, texts, base.scores[QUESTIONS].values(),
                    scores[QUESTIONS].values(), strict=True,
                )
            ]  # fmt: skip
        self._log(trainer, row)
        self._write(trainer)

    def _log(self, trainer: L.Trainer, row: dict[str, Any]) -> None:
        values = {"forgetting/kl": row["kl"]} | {
            f"forgetting/{name}": change["change"] for name, change in row["changes"].items()
        }
        set_values(trainer, values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=row["step"])

    def _answer(
        self, trainer: L.Trainer, model: Transformer
    ) -> tuple[list[list[int]], list[str], Scores]:
        """Answer the questions: token ids, texts and scores, empty where a process has no part."""
        if not _takes_part(trainer):
            return [], [], {}
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        prompts = [question.ids for question in self._questions]
        room = room_for(model, prompts, self.max_new_tokens)
        answers = generate(model, prompts, room, GREEDY, stop_ids=data.stop_ids)
        texts = [data.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        scores = {
            str(place): SCORES[question.key](text, question.expected)
            for place, (question, text) in enumerate(zip(self._questions, texts, strict=True))
        }
        return answers, texts, {QUESTIONS: scores}

    def _rows(self, answers: list[list[int]]) -> list[tuple[list[int], list[int]]]:
        return [(q.ids, ids) for q, ids in zip(self._questions, answers, strict=True)]

    def _run_task(self, trainer: L.Trainer, model: Transformer, name: str) -> Scores:
        from lit_llm.evaluate.harness import HarnessLM

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        lm = HarnessLM(model, data.tokenizer, max_batch_tokens=self.max_batch_tokens)
        found = item_scores(
            run_task(lm, self._loaded[name], limit=self.limit, num_fewshot=self.num_fewshot,
                     log_samples=True)
        )  # fmt: skip
        if not found:
            raise UserError(
                f"ForgettingCheck: task {name} scores no single items; name another, or run it "
                "with LMEvalCallback"
            )
        return found

    def _steps_until(self, step: int) -> list[dict[str, Any]]:
        """The measurements of an earlier part of this run."""
        try:
            rows = json.loads(self.file.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            return []
        return [row for row in rows if row["step"] <= step]

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps(self._found, indent=1, ensure_ascii=False) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The number of validations, so that ``every`` continues after a resume."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._validations = state_dict["validations"]


class RetentionCheck(ForgettingCheck):
    """The former name of `ForgettingCheck`, for one release."""

    def __init__(self, questions: str | None = None, count: int = 20, max_new_tokens: int = 32):
        rank_zero_warn("RetentionCheck is called ForgettingCheck now")
        super().__init__(questions=questions, count=count, max_new_tokens=max_new_tokens)


def _takes_part(trainer: L.Trainer) -> bool:
    """Whether this process runs the model for the questions: the first, or all of a sharded one."""
    return trainer.is_global_zero or is_sharded(trainer)


def _questions(file: Path, count: int, data: TokenDataModule, model: Transformer) -> list[Question]:
    def prompt_ids(messages: list[dict[str, Any]]) -> list[int]:
        if (chat := getattr(data, "chat", None)) is not None:
            return chat.prompt_ids(messages)
        if len(messages) > 1:
            raise UserError("several messages need a data module with a chat template")
        if not isinstance(text := messages[0].get("content"), str):
            raise UserError("needs 'prompt'")
        return data.encode_prompt(text)

    found = evenly_spaced(read_questions(file, prompt_ids), count)
    if not found:
        raise UserError(f"{file}: holds no question")
    for question in found:
        if len(question.ids) >= model.config.max_seq_len:
            raise UserError(
                f"{file}: the question {question.text[:30]!r} takes {len(question.ids)} tokens; "
                f"the model's context has {model.config.max_seq_len}"
            )
    return found


def _said(row: dict[str, Any]) -> str:
    scores = [
        f"{name} {c['before']:.2f} -> {c['after']:.2f} ({c['change']:+.2f}, 95% interval "
        f"{c['low']:+.2f} to {c['high']:+.2f}, {c['n']} items)"
        for name, c in row["changes"].items()
    ]
    return "; ".join([*scores, f"KL to the base {row['kl']:.3g} nats a token"])
