"""SFTModule on a quantised base: training, resume, refusals, what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from driver import together
from test_sft import base, data, fit, metrics, rows  # noqa: F401

from lit_llm import FSDP2Strategy, LoRAConfig, SFTModule, Tokenizer, Transformer, UserError
from lit_llm.models.hub.adapters import load_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels.quantized import FORMATS, Format
from lit_llm.plan import preflight
from lit_llm.plan.preflight import Preflight


def module(base: Path, quantize: Format | None = "nf4", **settings) -> SFTModule:
    L.seed_everything(1, verbose=False)
    lora = settings.pop("lora", LoRAConfig(rank=4))
    return SFTModule(str(base), lora=lora, quantize=quantize, learning_rate=1e-2, **settings)


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(1, 40)[None])


@pytest.fixture(scope="module")
def run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on an NF4 base in float32."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder, module(base), data(rows, folder / "cache"))
    return folder


def test_it_learns_and_final_is_the_sum_with_what_it_was_trained_beside(
    run: Path, base: Path
) -> None:  # fmt: skip
    losses = [float(row["val_loss"]) for row in metrics(run) if row["val_loss"]]
    assert losses[-1] < 0.9 * losses[0]
    model, digest = load_quantized(base, "nf4", torch.float32)
    load_adapter(model, run / "adapter")
    final = Transformer.from_pretrained(run / "final")
    torch.testing.assert_close(logits(final), logits(model), rtol=1e-4, atol=1e-4)
    plain = Transformer.from_pretrained(base)
    load_adapter(plain, run / "adapter")
    assert (logits(plain) - logits(final)).abs().max() > 0.05
    assert json.loads((run / "adapter" / "base.json").read_text()) == {
        "init_from": str(base), "digest": digest, "dtype": "float32", "quantize": "nf4"
    }  # fmt: skip


def test_a_checkpoint_holds_updates_alone_and_can_be_talked_to(run: Path) -> None:
    last = max((run / "checkpoints").glob("step-*.ckpt"))
    checkpoint = torch.load(last, weights_only=True)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["quantized_digest"] != checkpoint["base_digest"]
    model, _ = load_model(last)
    final = Transformer.from_pretrained(run / "final")
    torch.testing.assert_close(logits(model), logits(final), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_resume_is_bit_equal(
    format: Format, tmp_path: Path, base: Path, rows: Path
) -> None:  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, stops in ((whole, [6]), (parts, [3, 6])):
        for number, stop in enumerate(stops):
            source = data(rows, tmp_path / "cache", packing=True, global_batch_tokens=2 * 64)
            last = max((folder / "checkpoints").glob("step-*.ckpt")) if number else None
            fit(folder, module(base, format), source, last, max_steps=stop, precision="bf16-mixed")
    assert [row["train_loss"] for row in metrics(parts)] == [
        row["train_loss"] for row in metrics(whole)
    ]
    one, other = (f / "final" / "model.safetensors" for f in (whole, parts))
    assert one.read_bytes() == other.read_bytes()
    assert Transformer.from_pretrained(whole / "final").embed.weight.dtype == torch.bfloat16


def test_recomputing_changes_nothing(run: Path, tmp_path: Path, base: Path, rows: Path) -> None:
    again = module(base, activation_checkpointing=1.0)
    fit(tmp_path, again, data(rows, run / "cache"), max_steps=4)
    ours, theirs = ([row["train_loss"] for row in metrics(f)][1:5] for f in (tmp_path, run))
    assert list(map(float, ours)) == pytest.approx(list(map(float, theirs)), rel=1e-5)


def test_dora_learns_beside_it(tmp_path: Path, base: Path, rows: Path) -> None:
    lora = LoRAConfig(rank=4, dora=True)
    fit(tmp_path, module(base, lora=lora), data(rows, tmp_path / "cache"), max_steps=6)
    losses = [float(row["val_loss"]) for row in metrics(tmp_path) if row["val_loss"]]
    assert losses[-1] < losses[0]
    model, _ = load_quantized(base, "nf4", torch.float32)
    load_adapter(model, tmp_path / "adapter")
    final = Transformer.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(logits(final), logits(model), rtol=1e-4, atol=1e-4)


def test_the_anchor_is_the_quantised_base(
    run: Path, tmp_path: Path, base: Path, rows: Path
) -> None:
    """It holds the model near its start, which has no divergence at first."""
    fit(tmp_path, module(base, anchor=5.0), data(rows, run / "cache"))
    held, free = ([row["train_loss"] for row in metrics(folder)] for folder in (tmp_path, run))
    assert float(held[1]) == pytest.approx(float(free[1]), rel=1e-5)
    start, _ = load_quantized(base, "nf4", torch.float32)
    moved = [
        (logits(Transformer.from_pretrained(folder / "final")) - logits(start)).norm()
        for folder in (tmp_path, run)
    ]
    assert moved[0] < 0.9 * moved[1]


def test_another_base_or_form_is_refused(
    run: Path, tmp_path: Path, base: Path, rows: Path
) -> None:  # fmt: skip
    last = max((run / "checkpoints").glob("step-*.ckpt"))
    model = Transformer.from_pretrained(base)
    torch.nn.init.normal_(model.layers[0].mlp.up_proj.weight, std=0.3)
    model.save_pretrained(tmp_path / "other")
    Tokenizer.from_pretrained(base).save_pretrained(tmp_path / "other")
    for form, folder, message in (
        ("nf4", tmp_path / "other", r"model.init_from=.*: its weights are not those"),
        ("int8", base, "model.quantize was nf4 when the checkpoint was written and is int8 now"),
        (None, base, "model.quantize was nf4 when the checkpoint was written and is None now"),
    ):
        again = module(folder, form)
        with pytest.raises(UserError, match=message):
            fit(tmp_path / "again", again, data(rows, run / "cache"), last)


def test_packed_differently_is_refused(
    run: Path, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """As another version of bitsandbytes might pack."""
    last = max((run / "checkpoints").glob("step-*.ckpt"))
    from lit_llm.models.hub import quantized

    pack = quantized.pack

    def shifted(weight: torch.Tensor, format: Format) -> quantized.Packed:
        packed = pack(weight, format)
        return packed._replace(codes=packed.codes ^ 1)

    monkeypatch.setattr(quantized, "pack", shifted)
    with pytest.raises(UserError, match="has other values than the one for which"):
        fit(tmp_path, module(base), data(rows, run / "cache"), last)


def test_what_does_not_fit_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.quantize=nf4: .* it needs model.lora"):
        SFTModule(str(base), quantize="nf4")
    with pytest.raises(UserError, match=r"model.quantize must be"):
        SFTModule(str(base), lora=LoRAConfig(), quantize="nf5")
    with pytest.raises(UserError, match=r"cannot be sharded or cut; set trainer.strategy to ddp"):
        fit(tmp_path, module(base), data(rows, tmp_path / "cache"), strategy=FSDP2Strategy())


def test_the_plan_counts_the_quantised_base(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    setups = []
    memory = preflight.training_memory
    monkeypatch.setattr(
        preflight,
        "training_memory",
        lambda shape, setup: setups.append(setup) or memory(shape, setup),
    )
    for form in ("nf4", None):
        source = data(rows, tmp_path / "cache")
        fit(tmp_path / str(form), module(base, form), source, callbacks=[Preflight()], max_steps=1)
    assert {setup.quantize for setup in setups} == {"nf4", None}


def of_ranks(rank: int, folder: Path, base: Path, rows: Path, ranks: int) -> int:
    """Finetune as one of ``ranks`` processes."""
    source = data(rows, folder.parent / "cache", num_workers=0)
    ddp = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    fit(folder, module(base), source, max_steps=4, **ddp)
    return 0


@pytest.mark.slow
def test_two_processes_equal_one(base: Path, rows: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        assert together(ranks, tmp_path / f"{ranks}.out", of_ranks, folder, base, rows, ranks) == 0
    one, two = (Transformer.from_pretrained(tmp_path / n / "final") for n in ("1", "2"))
    torch.testing.assert_close(logits(one), logits(two), rtol=1e-4, atol=1e-4)
