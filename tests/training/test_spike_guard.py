"""SpikeGuard: broken and far-out steps change nothing, on every rank, and a resumed run decides
alike."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_llm import Checkpoint, MuonAdamW, PretrainDataModule, PretrainModule, SpikeGuard, UserError
from lit_llm.training.callbacks.checkpoint_folder import checkpoints
from lit_llm.training.optimizers import parameter_groups

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}


def guard(**settings: float) -> SpikeGuard:
    """One that is on its first step."""
    made = SpikeGuard(**settings)  # type: ignore[arg-type]
    made._norms, made._counts = torch.zeros(made.window), torch.zeros(3, dtype=torch.int64)
    return made


def decide(made: SpikeGuard, *norms: float) -> list[bool]:
    return [bool(made._decide(torch.tensor(norm))) for norm in norms]


@given(
    st.lists(st.floats(0.5, 2.0), min_size=20, max_size=60),
    st.sampled_from([math.nan, math.inf, 1e4]),
)
@settings(max_examples=30, deadline=None)
def test_what_is_skipped(ordinary: list[float], broken: float) -> None:
    made = guard(window=32)
    assert not any(decide(made, *ordinary))
    assert decide(made, broken) == [True]
    assert not any(decide(made, *ordinary))  # and the memory of it spoils nothing
    assert made._counts is not None and made._counts.tolist() == [2 * len(ordinary) + 1, 1, 0]


def test_early_on_only_broken_norms_count_and_a_new_level_is_accepted() -> None:
    made = guard(window=16)
    assert decide(made, 1.0, 1e6, math.nan, 1.0) == [False, False, True, False]
    made = guard(window=16)
    decide(made, *[1.0] * 16)
    later = decide(made, *[30.0] * 64)
    assert later[0] and not any(later[-16:])


@pytest.mark.parametrize("name", ["muon_adamw", "adamw"])
def test_found_inf_leaves_everything_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11))
    twin = copy.deepcopy(model)

    def optimizer(net: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(net, name, 0.02, 0.1)  # type: ignore[arg-type]
        return (
            MuonAdamW(groups)
            if name == "muon_adamw"
            else torch.optim.AdamW(groups, lr=0.02, fused=True)
        )

    first, second = optimizer(model), optimizer(twin)
    second.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for _ in range(3):
        for net, stepper in ((model, first), (twin, second)):
            net(torch.arange(11)).square().sum().backward()
            stepper.step()
            stepper.zero_grad()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    before = copy.deepcopy((twin.state_dict(), second.state_dict()["state"]))
    twin(torch.arange(11)).square().sum().backward()
    for p in twin.parameters():
        assert p.grad is not None
        p.grad[0] = math.nan
    second.found_inf = torch.ones(())  # type: ignore[attr-defined]
    second.step()
    torch.testing.assert_close(
        (twin.state_dict(), second.state_dict()["state"]), before, atol=0, rtol=0
    )


class Breaks(PretrainModule):
    """The loss of some steps is not a number on the last rank."""

    broken: tuple[int, ...] = (7,)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = super().compute_loss(batch)
        here = (
            self.global_rank == self.trainer.world_size - 1
            and self.trainer.global_step in self.broken
        )
        return loss * math.nan if here else loss


class PlainSGD(Breaks):
    """An optimizer that knows of no found_inf."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(
    folder: Path,
    corpus: Path,
    module: L.LightningModule,
    ckpt: Path | None = None,
    **kwargs: object,
) -> L.Trainer:
    data = PretrainDataModule(
        corpus=str(corpus), seq_len=32, micro_batch_size=2, global_batch_tokens=128,
        tokens=32 * 4 * 12, validate_every=0,
    )  # fmt: skip
    settings = {
        "callbacks": [SpikeGuard(), Checkpoint(every_steps=4, keep_last=9)], "logger": False,
        "log_every_n_steps": 1, "limit_val_batches": 0, **kwargs,
    }  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, max_epochs=1, enable_model_summary=False,
        enable_progress_bar=False, **settings,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=False)
    return trainer


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=False)[
        "state_dict"
    ]


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:step 8. SpikeGuard skipped 1")
@pytest.mark.parametrize("cls", [Breaks, PlainSGD])
def test_a_broken_step_is_skipped_and_told(tmp_path: Path, corpus: Path, cls: type[Breaks]) -> None:
    L.seed_everything(0)
    trainer = fit(tmp_path, corpus, cls(TINY, compile=False))
    assert trainer.global_step == 12
    assert all(torch.isfinite(value).all() for value in weights(tmp_path, 12).values())
    assert events(tmp_path) == [{"step": 8, "event": "skipped", "steps": 1, "in_all": 1}]


@pytest.mark.filterwarnings("ignore:step 8. SpikeGuard skipped 1")
def test_a_resumed_run_decides_alike(tmp_path: Path, corpus: Path) -> None:
    L.seed_everything(0)
    fit(tmp_path / "whole", corpus, Breaks(TINY, compile=False))
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-00000004.ckpt"
    L.seed_everything(0)
    fit(tmp_path / "again", corpus, Breaks(TINY, compile=False), checkpoint)
    torch.testing.assert_close(
        weights(tmp_path / "again", 12), weights(tmp_path / "whole", 12), atol=0, rtol=0
    )


@pytest.mark.filterwarnings("ignore:step 1[02]. SpikeGuard skipped 1")
def test_skips_that_were_not_told_before_a_kill_or_at_the_end_are(
    tmp_path: Path, corpus: Path
) -> None:
    """Skipped are step 7, of which the checkpoint of step 8 knows, and step 11 of 12; told is every
    fifth step."""
    told = [{"step": 10, "event": "skipped", "steps": 1, "in_all": 1},
            {"step": 12, "event": "skipped", "steps": 1, "in_all": 2}]  # fmt: skip
    for start in (None, tmp_path / "checkpoints" / "step-00000008.ckpt"):
        module = Breaks(TINY, compile=False)
        module.broken = (6, 10)
        fit(tmp_path, corpus, module, start, log_every_n_steps=5)
        assert events(tmp_path) == told


def test_patience_ends(tmp_path: Path, corpus: Path) -> None:
    module = Breaks(TINY, compile=False)
    module.broken = (3, 4, 5, 6, 7)
    said = (
        "step 6: SpikeGuard skipped 3 steps in a row; no whole checkpoint is older than the "
        "weights, which step 3"
    )
    with pytest.raises(UserError, match=said), pytest.warns(UserWarning):
        fit(
            tmp_path, corpus, module, callbacks=[SpikeGuard(patience=3)], enable_checkpointing=False
        )
    with pytest.raises(UserError, match="patience"):
        SpikeGuard(patience=0)


@pytest.mark.parametrize("name", ["muon_adamw", "adamw"])
def test_it_goes_back_to_the_newest_whole_checkpoint_and_on_with_new_data(
    tmp_path: Path, corpus: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Breaks(TINY, compile=False, optimizer=name)
    module.broken = (9, 10)
    sampled: list[int] = []

    class Damages(L.Callback):
        """Breaks the newest checkpoint before it is needed, and notes what is trained on."""

        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict, i: int
        ) -> None:
            sampled.extend(batch["sample_id"].tolist())
            if trainer.global_step == 10 and i % 2 == 0:
                file = tmp_path / "checkpoints" / "step-00000008.ckpt"
                file.write_bytes(file.read_bytes()[:-100])

        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
        ) -> None:
            if trainer.global_step == 11 and not hasattr(self, "after"):
                self.after = {k: v.clone() for k, v in pl_module.state_dict().items()}
                self.rate = trainer.optimizers[0].param_groups[0]["lr"]
                self.momenta = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])

    guard_, watch = SpikeGuard(patience=2), Damages()
    with pytest.warns(UserWarning, match="back to the weights of step-00000004.ckpt"):
        trainer = fit(
            tmp_path,
            corpus,
            module,
            # Not in the background: the file is damaged two steps after it is begun.
            callbacks=[guard_, Checkpoint(every_steps=4, keep_last=9, background=False), watch],
        )
    # No sample twice, none left out
    assert trainer.global_step == 12 and len(set(sampled)) == len(sampled) == 48
    saved = torch.load(tmp_path / "checkpoints" / "step-00000004.ckpt", weights_only=False)
    torch.testing.assert_close(watch.after, saved["state_dict"], atol=0, rtol=0)
    torch.testing.assert_close(watch.momenta, saved["optimizer_states"][0]["state"], atol=0, rtol=0)
    # The schedule went on
    assert watch.rate != saved["optimizer_states"][0]["param_groups"][0]["lr"]
    assert events(tmp_path)[-1] == {"step": 11, "event": "rolled back", "to": "step-00000004.ckpt"}
    module.broken = tuple(range(3, 12))
    said = "went back 0 times already; go on from --ckpt_path .*step-00000002.ckpt"
    with pytest.raises(UserError, match=said), pytest.warns(UserWarning):
        fit(
            tmp_path / "no",
            corpus,
            module,
            callbacks=[SpikeGuard(patience=2, rollbacks=0), Checkpoint(1)],
        )


def test_it_goes_back_behind_what_was_saved_while_steps_were_skipped(
    tmp_path: Path, corpus: Path
) -> None:
    """Steps 6 to 8 are skipped: checkpoints 5 to 7 hold the weights that break. Step 9 is made, 10
    to 12 skipped."""
    module = Breaks(TINY, compile=False)
    module.broken = (5, 6, 7, 9, 10, 11)
    with pytest.warns(UserWarning, match="back to the weights of step-00000004.ckpt"):
        fit(
            tmp_path,
            corpus,
            module,
            callbacks=[SpikeGuard(patience=3), Checkpoint(every_steps=1, keep_last=2)],
        )
    back = [(e["step"], e["to"]) for e in events(tmp_path) if e["event"] == "rolled back"]
    assert back == [(8, "step-00000004.ckpt"), (12, "step-00000008.ckpt")]
    left = [f.name for f in checkpoints(tmp_path / "checkpoints")]
    assert left == ["step-00000008.ckpt", "step-00000012.ckpt"]
    torch.testing.assert_close(weights(tmp_path, 12), weights(tmp_path, 8), atol=0, rtol=0)


def test_where_every_checkpoint_breaks_it_says_so(tmp_path: Path, corpus: Path) -> None:
    """It went back to step 4, and its weights break at once: with two kept there is no older
    one."""
    module = Breaks(TINY, compile=False)
    module.broken = tuple(range(5, 12))
    said = (
        "step 11: SpikeGuard skipped 3 steps in a row; no whole checkpoint is older than the "
        "weights, which step 4"
    )
    with pytest.raises(UserError, match=said), pytest.warns(UserWarning):
        fit(
            tmp_path,
            corpus,
            module,
            callbacks=[SpikeGuard(patience=3), Checkpoint(every_steps=1, keep_last=2)],
        )
