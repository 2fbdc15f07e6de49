"""bitsandbytes' 8-bit AdamW: near AdamW, in a quarter of its memory, resumed to the bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_llm import Checkpoint, PretrainModule, SpikeGuard, UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.transformer import Transformer
from lit_llm.training.eight_bit import build_eight_bit
from lit_llm.training.optimizers import parameter_groups
from tests.training.test_examples import data, trainer

SHAPE = {"hidden_size": 128, "num_layers": 2, "num_heads": 2}


def test_states_are_bytes_and_the_steps_adamws() -> None:
    losses, ids = {}, torch.randint(0, 64, (20, 4, 33), generator=torch.Generator().manual_seed(0))
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = Transformer(TransformerConfig(vocab_size=64, **SHAPE))
        groups = parameter_groups(model, "adamw", 2e-3, 0.1)
        optimizer = (
            torch.optim.AdamW(groups, betas=(0.9, 0.95))
            if name == "adamw"
            else build_eight_bit(name, groups, 2e-3)
        )
        losses[name] = []
        for batch in ids.sort(-1).values:  # sorted: there is something to learn
            loss = model.loss(batch[:, :-1], batch[:, 1:]) / batch[:, 1:].numel()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    assert losses["adamw"][-1] < 0.8 * losses["adamw"][0]
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.02)
    assert losses["adamw_8bit"] != losses["adamw"]
    dtypes = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert dtypes["layers.0.mlp.up_proj.weight"] == dtypes["head.weight"] == torch.uint8
    assert dtypes["embed.weight"] == torch.float32


def test_a_run_resumes_bit_equal(tmp_path: Path, corpus: Path) -> None:
    def fit(name: str, resume: bool = False, **settings: int) -> None:
        torch.manual_seed(0)
        checkpoint = Checkpoint(every_steps=3, monitor=None)
        fitter = trainer(
            tmp_path / name, callbacks=[checkpoint, SpikeGuard()], enable_progress_bar=False,
            limit_val_batches=0, **settings,
        )  # fmt: skip
        path = tmp_path / name / "checkpoints" / "step-00000003.ckpt" if resume else None
        module = PretrainModule(SHAPE, optimizer="adamw_8bit", compile=False)
        fitter.fit(module, data(corpus), ckpt_path=path, weights_only=False)
        assert fitter.global_step == settings.get("max_steps", 6)

    fit("whole")
    fit("parts", max_steps=3)
    fit("parts", resume=True)
    runs = [
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts")
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UserError,
        match=r"model.optimizer=adamw_8bit needs bitsandbytes: pip install 'lit_llm\[quant\]'",
    ):
        build_eight_bit("adamw_8bit", [], 1e-3)
