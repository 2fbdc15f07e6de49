"""One timed finetuning run by TRL, for finetune.py: python finetune_speed_trl.py JOB.json."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl


class Clock(transformers.TrainerCallback):
    """The time at the end of every optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class Counted(trl.SFTTrainer):
    """Counts the supervised tokens and all tokens of every micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.supervised: list[int] = []
        self.filled: list[int] = []
        self.computed: list[int] = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.supervised.append(int((inputs["labels"] != -100).sum()))
        mask = inputs.get("attention_mask")
        size = inputs["input_ids"].numel()
        self.filled.append(size if mask is None else int(mask.sum()))
        self.computed.append(size)
        return super().compute_loss(model, inputs, *args, **kwargs)


def main(job: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(job["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    model.config.use_cache = False
    rows = datasets.Dataset.from_list(json.loads((folder / "trl_rows.json").read_text()))
    lora = None
    if job["lora"]:
        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    config = trl.SFTConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, fp16=False,
        gradient_checkpointing=False, learning_rate=1e-5, max_steps=job["steps"],
        per_device_train_batch_size=job.get("peer_micro", job["micro"]),
        max_length=job["seq_len"] if job["peer_packing"] else None, packing=job["peer_packing"],
        train_sampling_strategy="sequential" if job["same_batches"] else "random",
        save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=10**6, seed=1,
    )  # fmt: skip
    clock = Clock()
    trainer = Counted(
        model, config, train_dataset=rows, peft_config=lora, callbacks=[clock],
        processing_class=transformers.AutoTokenizer.from_pretrained(job["base"]),
    )  # fmt: skip
    trainer.train()
    versions = {m.__name__: m.__version__ for m in (trl, peft, transformers, torch)}
    print(
        json.dumps(
            {
                "tokens_per_second": sum(trainer.supervised[1:]) / (clock.ends[-1] - clock.ends[0]),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "padding": 1 - sum(trainer.filled) / sum(trainer.computed),
                "versions": versions,
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent)
