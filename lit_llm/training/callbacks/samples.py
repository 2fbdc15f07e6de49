"""SampleCallback: text samples of the model during training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.data.base import TokenDataModule
from lit_llm.io.jsonl import keep_until
from lit_llm.models.generation.generate import generate, room_for
from lit_llm.models.generation.sampling import Sampling
from lit_llm.models.scorer import is_scorer
from lit_llm.models.transformer import Transformer
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.strategy import is_sharded

RANGES: dict[str, Range] = {
    "max_new_tokens": Range(1, 1e9),
}  # fmt: skip
"""Ranges of the numbers of `SampleCallback`."""


class SampleCallback(L.Callback):
    """Continues fixed prompts after each validation, and appends the texts to ``samples.jsonl``.

    The seed is fixed. A line is {"step", "tokens", "prompt", "text"}. A resumed run replaces the
    lines of the steps that it repeats. The callback needs a module whose ``network`` is a
    `Transformer` that writes, and a data module of lit_llm. Otherwise it does nothing.

    Args:
        prompts: texts to continue. None: the beginnings of the first three validation documents.
        max_new_tokens, sampling: see `generate`.
    """

    def __init__(
        self,
        prompts: list[str] | None = None,
        max_new_tokens: int = 80,
        sampling: Sampling = Sampling(temperature=0.7, top_k=50),  # noqa: B008 -- frozen
    ):
        check_ranges(locals(), RANGES, "samples.")
        self.prompts, self.max_new_tokens, self.sampling = prompts, max_new_tokens, sampling

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the lines after the step from which training resumes."""
        self.file = Path(trainer.default_root_dir) / "samples.jsonl"
        if trainer.is_global_zero:
            keep_until(self.file, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample on the first rank; with a sharded model all ranks take part."""
        data = _datamodule(trainer)
        model = getattr(pl_module, "network", None)
        if not isinstance(model, Transformer) or not isinstance(data, TokenDataModule):
            return
        if is_scorer(model):
            return
        texts = self.prompts if self.prompts is not None else data.sample_prompts
        if not texts or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not (trainer.is_global_zero or is_sharded(trainer)):
            return
        # A prompt that leaves no room for an answer is skipped.
        fitting = []
        for text in texts:
            ids = data.encode_prompt(text)
            if len(ids) < model.config.max_seq_len:
                fitting.append((text, ids))
            else:
                rank_zero_warn(f"samples: {text[:30]!r} fills the model's context and is left out")
        if not fitting:
            return
        prompts = [ids for _, ids in fitting]
        with trainer.precision_plugin.forward_context():
            answers = generate(
                model,
                prompts,
                room_for(model, prompts, self.max_new_tokens),
                self.sampling,
                stop_ids=data.stop_ids,
            )
        if not trainer.is_global_zero:
            return
        tokens = trainer.global_step * (getattr(data, "global_batch_tokens", None) or 0)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a", encoding="utf-8") as file:
            for (prompt, _), ids in zip(fitting, answers, strict=True):
                row = {
                    "step": trainer.global_step,
                    "tokens": tokens,
                    "prompt": prompt + data.prompt_end,
                    "text": data.tokenizer.decode(ids),
                }
                file.write(json.dumps(row) + "\n")


def _datamodule(trainer: Any) -> Any:
    return getattr(trainer, "datamodule", None)
