"""DPOModule and RewardModule: exact on packed trees, under accumulation, processes and resumes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from driver import together
from preference_runs import SHAPE, Gradients, data, module, trainer, write_pairs
from torch.utils.data import DataLoader

from lit_llm import DPOModule, LoRAConfig, RewardModule, Transformer, UserError
from lit_llm.data.trees import answers_of
from lit_llm.training.preferences import dpo
from lit_llm.training.preferences.answers import answer_logps

KINDS = ["sigmoid", "kto", "reward"]


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), 0.2, **SHAPE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def logged(folder: Path, *names: str) -> list[list[float]]:
    with open(folder / "metrics.csv", newline="") as file:
        found = [[float(row[n]) for n in names if row[n]] for row in csv.DictReader(file)]
    return [row for row in found if row]


# ---- exact ---------------------------------------------------------------------------------------


def test_packed_trees_give_the_values_and_gradients_of_separate_pairs(
    base: Path, rows: Path, cache: Path
) -> None:
    source = data(base, rows, cache)
    source.prepare_data()
    source.setup("fit")
    model = Transformer.from_pretrained(base)
    batch = next(iter(source.train_dataloader()))
    assert len(batch["answer_ends"]) > 4  # several pairs in a row
    packed, _ = answer_logps(model, batch)
    separate = []
    for example in batch["example_ids"].tolist():
        prompt, answers = answers_of(source.examples("train")[example])
        for answer in answers:
            ids = torch.tensor(np.concatenate((prompt, answer.ids))).long()
            log_p = model(ids[None])[0, :-1].log_softmax(-1)
            separate.append(log_p.gather(1, ids[1:, None])[len(prompt) - 1 :].sum())
    torch.testing.assert_close(packed, torch.stack(separate), rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, len(packed))  # the gradient of some loss
    for values in (packed, torch.stack(separate)):
        model.zero_grad()
        (values * weights).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        if values is packed:
            first = found
    for name, gradient in found.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-5, atol=1e-5)


def fit(
    rank: int, folder: Path, base: Path, rows: Path, kind: str, micro: int, devices: int
) -> int:
    L.seed_everything(1, verbose=False)
    # So small a learning rate leaves the weights, and with them the gradients, as they are.
    settings = {} if kind == "reward" else {"sft_weight": 0.3 if kind != "kto" else 0.0}
    own = module(base, kind, learning_rate=1e-12, grad_clip=None, **settings)
    if kind == "reward":  # a head of zeros would leave the other weights without a gradient
        own.configure_model()
        torch.manual_seed(5)
        torch.nn.init.normal_(own.network.head.weight)
    gradients = Gradients()
    run = trainer(folder, devices, callbacks=[gradients])
    run.fit(own, data(base, rows, folder / "cache", micro_batch_size=micro))
    assert run.accumulate_grad_batches == 8 // (micro * devices)
    if run.is_global_zero:
        torch.save(gradients.steps, folder / "gradients.pt")
    return 0


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_and_processes_change_nothing(
    kind: str, tmp_path: Path, base: Path, rows: Path
) -> None:
    for micro in (8, 4, 1):  # accumulation of 1, 2 and 8
        fit(0, tmp_path / str(micro), base, rows, kind, micro, devices=1)
    out, two = tmp_path / "out", tmp_path / "two"
    assert together(2, out, fit, two, base, rows, kind, 1, 2) == 0, out.read_text()[-3000:]
    names = ["train_loss", "grad_norm", "val_loss", "margin", "chosen_reward"]
    whole = logged(tmp_path / "8", *names)
    exact = torch.load(tmp_path / "8" / "gradients.pt")
    assert len(whole) > 3 and len(exact) > 3
    for other in ("4", "1", "two"):
        for ours, theirs in zip(logged(tmp_path / other, *names), whole, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
        for mine, theirs in zip(torch.load(tmp_path / other / "gradients.pt"), exact, strict=True):
            for name, gradient in theirs.items():
                scale = max(float(gradient.abs().max()), 1e-3)
                apart = float((mine[name] - gradient).abs().max())
                assert apart <= 1e-5 * scale, (other, name, apart, scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
def test_resume_within_an_epoch(
    kind: str, lora: LoRAConfig | None, tmp_path: Path, base: Path, rows: Path
) -> None:
    from test_sft import fit as run_folder

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, stops in ((whole, [-1]), (parts, [3, -1])):
        for number, stop in enumerate(stops):
            L.seed_everything(1, verbose=False)
            own = module(base, kind, lora=lora, learning_rate=1e-3)
            last = max((folder / "checkpoints").glob("step-*.ckpt")) if number else None
            source = data(base, rows, folder / "cache", validate_every=0, epochs=2.0,
                          global_batch_tokens=2 * 192)  # fmt: skip
            run_folder(folder, own, source, last, max_steps=stop)
    assert len(logged(whole, "train_loss")) > 4
    assert logged(parts, "train_loss") == logged(whole, "train_loss")
    final = [(folder / "final" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert final[0] == final[1]


# ---- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
def test_the_first_loss_is_ln_2_and_the_reference_is_kept(
    lora: LoRAConfig | None, tmp_path: Path, base: Path, rows: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for _ in range(2):
        with caplog.at_level("INFO"):
            run = trainer(tmp_path, max_steps=1)
            run.fit(module(base, "sigmoid", lora=lora), data(base, rows, tmp_path / "cache"))
        assert float(run.callback_metrics["train_loss"]) == pytest.approx(math.log(2), abs=1e-6)
        assert float(run.callback_metrics["accuracy"]) == pytest.approx(0.5, abs=0.5)
    assert caplog.text.count("computing the log-probabilities") == 1
    assert caplog.text.count("reference: answers from") == 1


def test_another_reference_is_another_file(tmp_path: Path, base: Path, rows: Path) -> None:
    """One weight differs by less than bfloat16 can say."""
    other = tmp_path / "other"
    model = Transformer.from_pretrained(base)
    model.save_pretrained(other)
    (other / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    (other / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    with torch.no_grad():
        model.norm.weight[0] *= 1 + 1e-6
    model.save_pretrained(other)
    cache = tmp_path / "cache"
    for start in (base, other):
        trainer(tmp_path, max_steps=1).fit(module(start, "sigmoid"), data(base, rows, cache))
    assert len(list((cache / "reference").glob("*.npy"))) == 2


def test_a_reference_that_is_not_the_start_ends_the_run(
    tmp_path: Path, base: Path, rows: Path
) -> None:
    cache = tmp_path / "cache"
    trainer(tmp_path, max_steps=1).fit(module(base, "sigmoid"), data(base, rows, cache))
    (file,) = (cache / "reference").glob("*.npy")
    np.save(file, np.load(file) - 0.1)
    with pytest.raises(UserError, match=r"at step 0 the model is .* nats a token away"):
        trainer(tmp_path, max_steps=1).fit(module(base, "sigmoid"), data(base, rows, cache))


def test_another_model_as_reference(
    tmp_path: Path, base: Path, rows: Path, random_base: Callable[..., Path]
) -> None:
    other = random_base(tmp_path / "other", 0.1, **SHAPE)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module(base, "sigmoid", reference=str(other)), data(base, rows, tmp_path / "cache"))
    assert abs(float(run.callback_metrics["margin"])) > 1e-3
    with pytest.raises(UserError, match=r"model\.reference=base: .* is not a run"):
        module(base, "sigmoid", reference="base")
    with pytest.raises(UserError, match="simpo compares with no reference"):
        module(base, "simpo", reference=str(other))


def test_the_base_of_a_finetuned_start(tmp_path: Path, base: Path, rows: Path) -> None:
    from test_sft import fit as run_folder

    first = tmp_path / "first"
    own = module(base, "simpo", lora=LoRAConfig(rank=4), learning_rate=1e-2)
    run_folder(first, own, data(base, rows, tmp_path / "cache"), max_steps=2)
    again = module(first / "final", "sigmoid", reference="base")
    assert again._reference_path == str(base)


# ---- what is measured ----------------------------------------------------------------------------


def test_a_batch_of_ones_own_under_a_plain_trainer(
    tmp_path: Path, base: Path, rows: Path, cache: Path
) -> None:
    source = data(base, rows, cache)
    source.prepare_data()
    source.setup("fit")
    keys = ("input_ids", "labels", "until", "position", "answer_ids", "answer_ends")
    batches = [{key: batch[key] for key in keys} for batch in source.train_dataloader()]

    def fit_on(own: DPOModule, batches: list[dict[str, Any]]) -> L.Trainer:
        L.seed_everything(1, verbose=False)
        run = trainer(tmp_path, max_steps=2)
        run.fit(own, DataLoader(batches, batch_size=None))
        return run

    lora = LoRAConfig(rank=4)
    settings = {"learning_rate": 1e-3, "validate_first": False}
    run = fit_on(DPOModule(str(base), lora=lora, **settings), batches)
    assert abs(run.callback_metrics["margin"].item()) > 1e-6
    with pytest.raises(UserError, match="the batch has no reference_logps"):
        fit_on(DPOModule(str(base), **settings), batches)
    model = Transformer.from_pretrained(base).eval()
    with torch.no_grad():
        known = [{**b, "reference_logps": answer_logps(model, b)[0]} for b in batches]
    again = fit_on(DPOModule(str(base), lora=lora, **settings), known)
    assert again.callback_metrics["margin"].item() == pytest.approx(
        run.callback_metrics["margin"].item(), abs=1e-5
    )


def test_chosen_answers_that_become_unlikely_are_told(
    tmp_path: Path, base: Path, rows: Path, cache: Path
) -> None:
    own = module(base, "apo_down", learning_rate=3e-2, warmup=0.0, chosen_share=0.9)
    with pytest.warns(UserWarning, match="of the likelihood per token that they had at the start"):
        trainer(tmp_path, max_steps=4).fit(own, data(base, rows, cache))


def test_a_tie_is_half_a_win(base: Path, rows: Path, cache: Path, tmp_path: Path) -> None:
    """A fresh reward model scores all answers 0."""
    run = trainer(tmp_path)
    (found,) = run.validate(RewardModule(str(base)), data(base, rows, cache), verbose=False)
    assert found["val_accuracy"] == 0.5 and found["val_loss"] == pytest.approx(math.log(2))
    assert found["val_accuracy_low"] < 0.5 < found["val_accuracy_high"]


@pytest.mark.parametrize("loss", [*dpo.LOSSES, json.dumps({"sigmoid": 1.0, "apo_zero": 0.5})])
def test_every_loss_learns(loss: str, tmp_path: Path, base: Path, cache: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as out:
        for i in range(40):
            row = {"prompt": f"What is {i}?", "chosen": "yes of the red", "rejected": "no a blue"}
            out.write(json.dumps(row) + "\n")
    own = DPOModule(
        str(base), loss=json.loads(loss) if loss.startswith("{") else loss, learning_rate=5e-3,
        warmup=0.0, compile=False, patience=None,
    )  # fmt: skip
    run = trainer(tmp_path)
    run.fit(own, data(base, rows, cache, epochs=8.0, global_batch_tokens=2 * 192))
    margins = logged(tmp_path, "margin")
    assert margins[-1][0] > margins[0][0] + 0.02
    assert float(run.callback_metrics["val_margin"]) > 0
