"""Preference runs by TRL, for preference_parity.py. Runs in .venv-finetune.

    python preference_trl.py JOB.json [JOB.json ...]

A job's keys are those of ``Job`` in preference_parity.py. TRL gets token ids instead of texts, so
the methods that tokenize are replaced; all else is its own. Loss, gradient norm and rewards of
every step are written to the job's ``out`` folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Recorded:
    """Keeps the loss of every micro-batch unrounded, and what is logged of every step."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.losses.append(loss.item())
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        # TRL's own log adds its metrics to the dict.
        if "grad_norm" in logs:
            self.logged.append({k: float(v) for k, v in logs.items()})

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class OfIds:
    """ORPOTrainer and CPOTrainer tokenize row by row."""

    def tokenize_row(self, feature: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        return row


class DPO(Recorded, trl.DPOTrainer):
    pass


class KTO(Recorded, trl.KTOTrainer):
    pass


class Reward(Recorded, trl.RewardTrainer):
    pass


class ORPO(Recorded, OfIds, ORPOTrainer):
    pass


class CPO(Recorded, OfIds, CPOTrainer):
    pass


TRAINERS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPO, trl.DPOConfig), "kto": (KTO, trl.KTOConfig), "reward": (Reward, trl.RewardConfig),
    "orpo": (ORPO, ORPOConfig), "cpo": (CPO, CPOConfig),
}  # fmt: skip


def train(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    trainer_class, config_class = TRAINERS[job["trainer"]]
    kind = transformers.AutoModelForCausalLM
    more: dict[str, Any] = {}
    if job["trainer"] == "reward":
        kind = transformers.AutoModelForSequenceClassification
        more = {"num_labels": 1}
    model = kind.from_pretrained(
        job["base"], dtype=torch.float32, attn_implementation="sdpa", **more
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["base"])
    tokenizer.pad_token = job["pad_token"]
    if job["trainer"] == "reward":
        model.config.pad_token_id = tokenizer.pad_token_id
        torch.nn.init.zeros_(model.score.weight)
    config = config_class(
        output_dir=job["out"], use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=job["accumulation"], max_steps=job["steps"],
        learning_rate=job["learning_rate"], lr_scheduler_type="linear", warmup_steps=0,
        weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
        optim="adamw_torch", train_sampling_strategy="sequential", logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, max_length=job["max_length"],
        seed=1, **job["settings"],
    )  # fmt: skip
    trainer = trainer_class(
        model,
        args=config,
        train_dataset=datasets.Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
    )
    trainer.train()
    share = job["accumulation"]
    losses = [
        sum(trainer.losses[i : i + share]) / share for i in range(0, len(trainer.losses), share)
    ]
    versions = {m.__name__: m.__version__ for m in (trl, transformers, torch)}
    (Path(job["out"]) / "run.json").write_text(
        json.dumps({"losses": losses, "logged": trainer.logged, "versions": versions})
    )


if __name__ == "__main__":
    for file in sys.argv[1:]:
        train(json.loads(Path(file).read_text()))
