"""One timed finetuning run by SFTModule, for finetune.py: python finetune_speed_ours.py JOB.json.

It also writes the token ids and labels of the examples beside the job, for TRL.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lit_llm  # noqa: F401  # isort: skip -- before torch, whose threads then do not spin
import lightning as L
import torch

from lit_llm import InstructionDataModule, LoRAConfig, SFTModule
from lit_llm.data.blocks import IGNORE


class Clock(L.Callback):
    """The time at the end of every optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step > len(self.ends):
            self.ends.append(time.perf_counter())


def data_of(job: dict[str, Any], **settings: Any) -> InstructionDataModule:
    return InstructionDataModule(
        job["rows"], chat_template=job["template"], tokenizer=job["base"], cache_dir=job["cache"],
        seq_len=job["seq_len"], min_steps=0, **settings,
    )  # fmt: skip


def write_rows(file: Path, job: dict[str, Any], used: list[dict[str, Any]]) -> None:
    """Write the examples for TRL: all of them, or those that we have used in their order."""
    if job["same_batches"]:
        pairs = [(row["input_ids"], row["labels"], int((row["document_ids"] >= 0).sum()))
                 for row in used]  # fmt: skip
    else:
        apart = data_of(job, share_prefixes=False)
        apart.prepare_data()
        pairs = [(tree.input_ids, tree.labels, len(tree.labels))
                 for tree in apart.examples("train")]  # fmt: skip
    # TRL takes a label at the place of its own token.
    rows = [
        {"input_ids": [*ids[:size].tolist(), int(max(labels[size - 1], 0))],
         "labels": [IGNORE, *labels[:size].tolist()]}
        for ids, labels, size in pairs
    ]  # fmt: skip
    file.write_text(json.dumps(rows))


def main(job: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(job["threads"])
    data = data_of(job, packing=job["packing"], micro_batch_size=job["micro"])
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=job["steps"], logger=False, callbacks=[clock],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, num_sanity_val_steps=0, precision="32-true",
    )  # fmt: skip
    lora = LoRAConfig() if job["lora"] else None
    module = SFTModule(
        job["base"], lora=lora, learning_rate=1e-5, activation_checkpointing=0.0,
        validate_first=False,
    )  # fmt: skip
    trainer.fit(module, data)
    tokens = int(data.supervised_tokens[1 : job["steps"]].sum())
    used = [data.train_dataset[i] for i in range(job["steps"] * data.rows_per_step)]
    filled = [int((row["document_ids"] >= 0).sum()) for row in used]
    micro, computed = job["micro"], len(used) * job["seq_len"]
    if not job["packing"]:  # a batch is cut to its longest row
        batches = [filled[start : start + micro] for start in range(0, len(filled), micro)]
        computed = sum(len(batch) * max(batch) for batch in batches)
    write_rows(folder / "trl_rows.json", job, used)
    print(
        json.dumps(
            {
                "tokens_per_second": tokens / (clock.ends[-1] - clock.ends[0]),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "padding": 1 - sum(filled) / computed,
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent)
