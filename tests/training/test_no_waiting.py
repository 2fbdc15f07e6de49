"""Between logged steps nothing asks the device for a value: on a GPU the host would wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llm import (
    Checkpoint,
    CSVLogger,
    FreezeGarbage,
    PretrainDataModule,
    PretrainModule,
    ProgressBar,
    SpikeGuard,
    ThroughputCallback,
)
from lit_llm.training.optimizers import MuonAdamW

WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select",
         "aten::is_nonzero", "aten::equal", "aten::unique_dim", "aten::_unique2"}  # fmt: skip
# Boolean masks as indices call nonzero inside.


class Watch(TorchDispatchMode):
    """Which operators that wait were called, by optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.waited = -1, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name == "aten::index" and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if (name in WAITS or by_mask) and self.step >= 0:
            self.waited.append((self.step, name))
        return func(*args, **(kwargs or {}))


class Steps(L.Callback):
    """Tells the watch where the steps begin."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.watch.step = trainer.global_step + 1

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.watch.step = -1


@pytest.mark.parametrize("optimizer", ["muon_adamw", "adamw"])
@pytest.mark.parametrize("documents", [False, True])
def test_only_logged_steps_wait(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    documents: bool,
) -> None:
    # As on a GPU: a CPU looks for the used rows of a table.
    monkeypatch.setattr(MuonAdamW, "find_rows", False)
    watch = Watch()
    module = PretrainModule(
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2}, optimizer=optimizer, compile=False
    )
    data = PretrainDataModule(
        corpus=str(corpus), seq_len=32, micro_batch_size=2, global_batch_tokens=128,
        tokens=128 * 12, validate_every=0, mask_documents=documents,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=CSVLogger(tmp_path),
        log_every_n_steps=5, max_epochs=1, limit_val_batches=0, enable_model_summary=False,
        precision="bf16-mixed",
        callbacks=[ProgressBar(), ThroughputCallback(), SpikeGuard(), FreezeGarbage(),
                   Checkpoint(every_steps=100), Steps(watch)],
    )  # fmt: skip
    with watch:
        trainer.fit(module, data)
    assert trainer.global_step == 12
    # The logged ones, the first and the last among them.
    assert {step for step, _ in watch.waited} == {1, 5, 10, 12}, sorted(set(watch.waited))
