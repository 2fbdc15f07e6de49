"""One finetuning run by TRL's SFTTrainer, for finetune_parity.py. Runs in .venv-finetune.

    python finetune_trl.py JOB.json

The job's keys are those of ``Job`` in finetune_parity.py. Loss and gradient norm of every step, the
trained weights and the log-probabilities of the scored rows afterwards are written to the job's
``out`` folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl
from safetensors.torch import save_file
from torch import Tensor


class Recorded(trl.SFTTrainer):
    """Keeps the loss of every optimizer step unrounded, and the gradient's norm before clipping."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.losses: list[float] = []
        self.norms: list[float] = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        # Every micro-batch's share: its sum over the tokens of the whole step.
        self.losses.append(loss.item())
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))
        super().log(logs, *args, **kwargs)


def train(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    model.config.use_cache = False
    if job["adapter"] is not None:
        model = peft.PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    rows = datasets.Dataset.from_list(job["rows"])
    out = Path(job["out"])
    config = trl.SFTConfig(
        output_dir=str(out), use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=job["accumulation"], max_steps=job["steps"],
        learning_rate=job["learning_rate"], lr_scheduler_type="linear", warmup_steps=0,
        weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
        optim="adamw_torch", train_sampling_strategy="sequential", logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, loss_type=job["loss"],
        max_length=None, packing=False, seed=1,
    )  # fmt: skip
    trainer = Recorded(
        model,
        config,
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(job["base"]),
    )
    trainer.train()
    share = job["accumulation"]
    losses = [sum(trainer.losses[i : i + share]) for i in range(0, len(trainer.losses), share)]
    trained = trainer.model.eval()
    weights = {
        name: p.detach().clone().contiguous()
        for name, p in trained.named_parameters()
        if p.requires_grad
    }
    save_file(weights, out / "weights.safetensors")
    scores = [log_probabilities(trained, torch.tensor([ids])) for ids in job["scored"]]
    save_file({str(i): scores[i] for i in range(len(scores))}, out / "scores.safetensors")
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    (out / "run.json").write_text(
        json.dumps({"losses": losses, "norms": trainer.norms, "versions": versions})
    )


@torch.no_grad()
def log_probabilities(model: Any, ids: Tensor) -> Tensor:
    """Log-probability of every token of ``ids`` (1, T) but the first, in nats: float32 (T - 1)."""
    logits = model(input_ids=ids).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].contiguous()


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
