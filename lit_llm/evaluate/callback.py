"""LMEvalCallback: runs lm-eval tasks on the model during training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import UserError
from lit_llm.evaluate.chosen_by import drop_values, set_values
from lit_llm.evaluate.run import load_tasks, metric_rows, one_line, run_task
from lit_llm.evaluate.scoring.plain import LogitsModel
from lit_llm.io.jsonl import keep_until
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.settings.ranges import Range, check_ranges

RANGES: dict[str, Range] = {
    "every_steps": Range(1, 1e12), "limit": Range(1, 1e9), "num_fewshot": Range(0, 1e4),
    "max_batch_tokens": Range(1, 1e9),
}  # fmt: skip
"""Ranges of the numbers of `LMEvalCallback`."""


class LMEvalCallback(L.Callback):
    """Runs lm-eval tasks after validations.

    Logs ``eval/<task>/<metric>`` and appends lines {"step", "task", "metric", "value", "stderr"} to
    ``evaluations.jsonl``. Lines of steps that a resumed run repeats are replaced. All ranks share
    the work. If a task fails, one line reports it, and training continues.

    The values are also in the Trainer's ``callback_metrics``, so `Checkpoint` may choose the best
    checkpoint by one of them: ``monitor="eval/stdlib_choice/acc"``. After a validation
    without an evaluation they are not there, and that validation neither is the best nor counts
    for early stopping.

    The data module must have a ``tokenizer``. The module's ``network`` is a `Transformer`, or the
    module has a method ``logits(input_ids)``: int64 (B, T), padded on the right, -> (B, T, V), and
    a number ``max_seq_len`` of its own or of the data module (``seq_len``).

    Args:
        tasks: names, see ``load_tasks``. "stdlib_choice" and the other local tasks work offline.
        every_steps: least number of optimizer steps between two evaluations, which follow a
            validation. None: after every validation.
        limit: number of documents per task, from the first on. None: all.
        include: folders of lm-eval YAML files, or such files.
        num_fewshot: worked examples before each question. None: the task's number.
        max_batch_tokens: most tokens per batch, including padding.

    Raises:
        UserError: before training, for a bad setting, an unknown task, or an unsuitable module or
            data module.
    """

    def __init__(
        self,
        tasks: list[str],
        every_steps: int | None = None,
        limit: int | None = None,
        include: list[str] | None = None,
        num_fewshot: int | None = None,
        max_batch_tokens: int = 4096,
    ):
        check_ranges(locals(), RANGES, "LMEvalCallback: ")
        self.tasks, self.every_steps, self.limit = tasks, every_steps, limit
        self.include, self.num_fewshot, self.max_batch_tokens = (
            include or [],
            num_fewshot,
            max_batch_tokens,
        )
        self.last_step = 0
        self.loaded: dict[str, Mapping[str, Any]] = {}
        self._told: set[str] = set()  # tasks of which it was said that prompts were cut

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the tasks, so that a mistake is reported before the first step."""
        if stage == "fit":
            self.loaded = load_tasks(self.tasks, self.include)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the lines after the step from which training resumes."""
        _model_and_tokenizer(trainer, pl_module)
        self.file = Path(trainer.default_root_dir) / "evaluations.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the tasks if they are due."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        drop_values(trainer, "eval/")
        step, every = trainer.global_step, self.every_steps
        if every is not None and step // every <= self.last_step // every:
            return
        self.last_step = step

        from lit_llm.evaluate.harness import HarnessLM

        rows = []
        with trainer.precision_plugin.forward_context():
            lm = HarnessLM(
                *_model_and_tokenizer(trainer, pl_module), max_batch_tokens=self.max_batch_tokens
            )
            for name, task in self.loaded.items():
                try:
                    rows += metric_rows(
                        run_task(lm, task, limit=self.limit, num_fewshot=self.num_fewshot)
                    )
                except Exception as error:
                    # A task runs foreign code. A failure there must not end the training.
                    rank_zero_info(
                        f"LMEvalCallback: step {step}: {name} failed, training continues: "
                        f"{one_line(error)}"
                    )
                if (said := lm.told()) and name not in self._told:
                    self._told.add(name)
                    rank_zero_info(f"LMEvalCallback: {name}: {'; '.join(said)}")
        values = {f"eval/{row['task']}/{row['metric']}": row["value"] for row in rows}
        set_values(trainer, values)
        if not rows or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"step": step, **{key: row[key] for key in _KEYS}}) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The step of the last evaluation, so that ``every_steps`` continues after a resume."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.last_step = state_dict["last_step"]


_KEYS = ("task", "metric", "value", "stderr")


def _model_and_tokenizer(
    trainer: Any, pl_module: L.LightningModule
) -> tuple[Transformer | LogitsModel, Tokenizer]:
    data = getattr(trainer, "datamodule", None)
    tokenizer = getattr(data, "tokenizer", None)
    model = getattr(pl_module, "network", None)
    if not isinstance(model, Transformer):
        longest = getattr(pl_module, "max_seq_len", getattr(data, "seq_len", None))
        if not callable(getattr(pl_module, "logits", None)):
            raise UserError(
                "LMEvalCallback: the module's `network` must be a lit_llm Transformer, or the "
                "module needs a method logits(input_ids)"
            )
        if not isinstance(longest, int):
            raise UserError(
                "LMEvalCallback: the module needs max_seq_len, the most tokens it takes"
            )
        model = LogitsModel(pl_module, longest)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            "LMEvalCallback: the data module must have a `tokenizer`, a lit_llm Tokenizer"
        )
    return model, tokenizer
