"""ForgettingCheck: intervals and divergences by themselves, and what runs measure and keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from driver import together

from lit_llm import (
    Checkpoint,
    CSVLogger,
    ForgettingCheck,
    InstructionDataModule,
    LoRAConfig,
    PretrainDataModule,
    PretrainModule,
    SFTModule,
    Transformer,
    TransformerConfig,
    UserError,
)
from lit_llm.evaluate.forgetting.divergence import KEPT, divergence, likeliest
from lit_llm.evaluate.forgetting.paired import paired_change
from lit_llm.evaluate.statistics.right_wrong import RightWrong

SHAPE = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 96}


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), 0.1, **SHAPE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    split = ["train"] * 14 + ["validation"] * 6
    file.write_text(
        "".join(
            json.dumps({"prompt": f"Is {i} right?", "completion": "yes", "split": split[i]}) + "\n"
            for i in range(20)
        )
    )
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any answer is right to the first four; the last two are right after training only."""
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    asked = [{"prompt": f"What is {i}?", "pattern": "^(?!yes$)"} for i in range(4)]
    asked += [{"prompt": f"Is {i} right?", "exact": "yes"} for i in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return file


def fit(
    folder: Path, base: Path, rows: Path, check: ForgettingCheck, *, ckpt_path: Any = None,
    saves: Checkpoint | None = None, lora: LoRAConfig | None = None,
    more: tuple[L.Callback, ...] = (), **trainer: Any,
) -> SFTModule:  # fmt: skip
    L.seed_everything(1, verbose=False)
    run = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[check, *more, saves or Checkpoint(every_steps=5)], **trainer,
    )  # fmt: skip
    data = InstructionDataModule(
        str(rows), cache_dir=str(folder / "cache"), seq_len=96, micro_batch_size=2, epochs=10.0,
        min_steps=0, global_batch_tokens=4 * 96, validate_every=5, packing=False,
    )  # fmt: skip
    module = SFTModule(
        str(base), lora=lora, learning_rate=3e-3 if lora is None else 3e-2, compile=False
    )
    run.fit(module, data, ckpt_path=ckpt_path)
    return module


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "forgetting.json").read_text())


# ---- the interval --------------------------------------------------------------------------------


def numbered(scores: list[float]) -> dict[str, float]:
    return {str(place): score for place, score in enumerate(scores)}


def test_the_change_is_that_of_the_paired_test() -> None:
    before = numbered([0] * 2 + [1] * 7 + [1] * 20 + [0] * 11)
    after = numbered([1] * 2 + [0] * 7 + [1] * 20 + [0] * 11)
    found = paired_change(before, after)
    assert found.change == pytest.approx(-5 / 40) and found.n == 40
    assert (found.low, found.high) == RightWrong(2, 7, 40).interval()
    same = paired_change(before, before)
    assert same.change == 0 and -0.1 < same.low < 0 < same.high < 0.1
    half = paired_change(numbered([0.5] * 30), numbered([0.5] * 30))
    assert half.change == 0 and half.low < -0.05 and half.high > 0.05


def test_the_interval_covers_the_truth() -> None:
    """Of 48 items, 2% are won and 8% are lost in truth; 95% of the intervals say -6%."""
    draw, covered, times = np.random.default_rng(0), 0, 2000
    for _ in range(times):
        kind = draw.choice(4, size=48, p=[0.02, 0.08, 0.6, 0.3])
        before, after = np.isin(kind, [1, 2]), np.isin(kind, [0, 2])
        found = paired_change(numbered(list(before)), numbered(list(after)))
        covered += found.low <= -0.06 <= found.high
    assert 0.93 < covered / times < 0.99


def test_scores_beyond_one_have_the_interval_of_their_spread() -> None:
    before, after = [1.0, 5.0, 9.0, 4.0], [2.0, 5.0, 12.0, 4.0]
    difference = np.subtract(after, before)
    found = paired_change(numbered(before), numbered(after))
    half = 3.1824 * difference.std(ddof=1) / 2  # t of three degrees of freedom
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), rel=1e-4)


# ---- the divergence ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [KEPT, 4 * KEPT])
def test_divergence(size: int) -> None:
    """Exact for small vocabularies; a little less where the tail counts as one token."""
    torch.manual_seed(0)
    shape = {"vocab_size": size, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    before, after = (Transformer(TransformerConfig(**shape)) for _ in range(2))
    for model in (before, after):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    rows = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 10]), ([2, 2], [])] * 5
    exact = []
    for prompt, answer in rows:
        with torch.no_grad():
            p, q = (
                model.eval()(torch.tensor([prompt + answer]))[0, len(prompt) - 1 :][: len(answer)]
                .double().log_softmax(-1)
                for model in (before, after)
            )  # fmt: skip
        exact += (p.exp() * (p - q)).sum(-1).tolist()
    after.train()
    found, tokens = divergence(after, rows, likeliest(before, rows))
    assert after.training and tokens == 30
    least = 0.999 if size == KEPT else 0.5
    assert least * np.mean(exact) < found < 1.001 * np.mean(exact)
    assert divergence(before, rows, likeliest(before, rows))[0] < 1e-6


# ---- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=8)])
def test_a_run(
    tmp_path: Path, base: Path, rows: Path, questions: Path, lora: LoRAConfig | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    check = ForgettingCheck(["stdlib_choice"], str(questions), max_new_tokens=4, limit=6)
    with caplog.at_level("INFO"):
        fit(tmp_path, base, rows, check, lora=lora)
    found = content(tmp_path)
    state = json.loads((tmp_path / "final" / "trainer_state.json").read_text())
    assert found["final_step"] == found["items_step"] == state["global_step"]
    assert [row["step"] for row in found["steps"]][:3] == [5, 10, 15]
    names = ["questions/score", "stdlib_choice/acc", "stdlib_choice/acc_norm"]
    final = next(row for row in found["steps"] if row["step"] == found["final_step"])
    assert all(list(row["changes"]) == names for row in found["steps"])
    # "yes" to all: the first four were right and are not, the last two became right.
    asked = final["changes"]["questions/score"]
    assert asked["n"] == 6 and asked["before"] == pytest.approx(4 / 6)
    assert asked["after"] == pytest.approx(2 / 6) and asked["low"] < asked["change"] < 0
    assert [row["after"] for row in found["questions"]] == ["yes"] * 6
    for name, scores in found["items"].items():
        assert np.mean(scores["after"]) == pytest.approx(final["changes"][name]["after"])
        assert np.mean(scores["before"]) == pytest.approx(final["changes"][name]["before"])
    assert 0 < found["steps"][0]["kl"] < final["kl"] and final["kl_tokens"] > 0
    assert f"of the weights of step {found['final_step']}: questions/score 0.67 -> 0.33" in (
        caplog.text
    )
    columns = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"forgetting/kl", *(f"forgetting/{name}" for name in names)} <= set(columns)


def test_rarely_and_the_best_by_it(tmp_path: Path, base: Path, rows: Path, questions: Path) -> None:
    """What final/ holds is measured also if no measurement was due then."""
    saves = Checkpoint(monitor="val_loss")
    fit(tmp_path / "a", base, rows, ForgettingCheck(questions=str(questions), every=0), saves=saves)
    found = content(tmp_path / "a")
    assert [row["step"] for row in found["steps"]] == [found["final_step"]]
    # Little learnt is little forgotten.
    saves = Checkpoint(monitor="forgetting/kl", mode="min")
    fit(tmp_path / "b", base, rows, ForgettingCheck(questions=str(questions)), saves=saves)
    assert content(tmp_path / "b")["final_step"] == 5


class Known(L.Callback):
    """The validations after which other callbacks see values."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "forgetting/kl" in trainer.callback_metrics:
            self.steps.append(trainer.global_step)


def test_values_are_known_where_they_were_measured(
    tmp_path: Path, base: Path, rows: Path, questions: Path
) -> None:
    known = Known()
    check = ForgettingCheck(questions=str(questions), max_new_tokens=2, every=2)
    fit(tmp_path, base, rows, check, more=(known,), max_steps=20)
    assert known.steps == [10, 20]


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=8)])
def test_a_resumed_run_keeps_the_base(
    tmp_path: Path, base: Path, rows: Path, questions: Path, lora: LoRAConfig | None
) -> None:
    def check(**settings: Any) -> ForgettingCheck:
        return ForgettingCheck(questions=str(questions), max_new_tokens=4, every=2, **settings)

    def newest(folder: Path) -> Path:
        return max((folder / "checkpoints").glob("step-*.ckpt"))

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(whole, base, rows, check(), lora=lora, saves=Checkpoint(5, final="last"), max_steps=20)
    fit(parts, base, rows, check(), lora=lora, saves=Checkpoint(5, final="last"), max_steps=15)
    again = {"lora": lora, "saves": Checkpoint(5, final="last"), "ckpt_path": newest(parts)}
    with pytest.raises(UserError, match="the base was measured with limit=None; set it back"):
        fit(parts, base, rows, check(limit=3), max_steps=20, **again)
    fit(parts, base, rows, check(), max_steps=20, **again)
    one, other = content(whole), content(parts)
    other["steps"].remove(next(row for row in other["steps"] if row["step"] == 15))  # its own end
    assert one == other
    # Without the file: measured again with LoRA, by the model without its updates.
    (parts / "forgetting-base.pt").unlink()
    again["ckpt_path"] = newest(parts)
    if lora is None:
        with pytest.raises(
            UserError, match=r"base\.pt: the base's measurements are missing; start"
        ):
            fit(parts, base, rows, check(), max_steps=25, **again)
    else:
        fit(parts, base, rows, check(), max_steps=25, **again)
        kept = torch.load(parts / "forgetting-base.pt", weights_only=True)
        expected = torch.load(whole / "forgetting-base.pt", weights_only=True)
        assert kept["answers"] == expected["answers"] and kept["scores"] == expected["scores"]


def ranks(rank: int, folder: Path, base: Path, rows: Path, questions: Path) -> int:
    check = ForgettingCheck(["stdlib_choice"], str(questions), max_new_tokens=4, limit=3)
    saves = Checkpoint(monitor="forgetting/questions/score", mode="max")
    fit(folder, base, rows, check, saves=saves, max_steps=5, devices=2, strategy="ddp")
    return 0 if saves.best_score is not None else 1


def test_all_processes_know_the_change(
    tmp_path: Path, base: Path, rows: Path, questions: Path
) -> None:
    out = tmp_path / "out"
    done = together(2, out, ranks, tmp_path / "run", base, rows, questions)
    assert done == 0, out.read_text()[-3000:]
    alone = ForgettingCheck(["stdlib_choice"], str(questions), max_new_tokens=4, limit=3)
    fit(tmp_path / "one", base, rows, alone, max_steps=5)
    one, two = content(tmp_path / "one")["items"], content(tmp_path / "run")["items"]
    assert {name: scores["before"] for name, scores in one.items()} == {
        name: scores["before"] for name, scores in two.items()
    }


def test_pretraining_data_and_shipped_questions(tmp_path: Path, corpus: Path, base: Path) -> None:
    """Continued pretraining forgets too; its data has no chat template."""
    module = PretrainModule(init_from=str(base), optimizer="adamw", compile=False)
    data = PretrainDataModule(corpus=str(corpus), seq_len=64, micro_batch_size=2, tokens=256)
    check = ForgettingCheck(count=5, max_new_tokens=3)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[check, Checkpoint()],
        enable_model_summary=False, enable_progress_bar=False, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, data)
    found = content(tmp_path)
    assert found["final_step"] == 2 and found["rehearsal"] is None
    assert found["steps"][-1]["changes"]["questions/score"]["n"] == 5


def test_what_rehearsal_costs(tmp_path: Path, base: Path, rows: Path) -> None:
    """The estimate without rehearsal is what a run with it has more."""
    from lit_llm.evaluate.forgetting.rehearsal import SHARE, rehearsal_cost
    from lit_llm.models.hub.huggingface import read_json

    many = tmp_path / "many.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()] * 10
    many.write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs, tokens = [], []
    for share in (0.0, SHARE):
        data = InstructionDataModule(
            str(many), tokenizer=str(base), cache_dir=str(tmp_path), seq_len=256, rehearsal=share
        )
        costs.append(rehearsal_cost(data))
        tokens.append(read_json(data.datacard_file)["splits"]["train"]["tokens"])
    without, with_it = costs
    assert without is not None and with_it is not None
    assert not without["used"] and with_it["used"]
    assert without["own_tokens"] == tokens[0]
    assert without["tokens"] == pytest.approx(tokens[1] - tokens[0], rel=0.1)
    assert with_it["tokens"] == pytest.approx(without["tokens"], rel=0.1)
    named = InstructionDataModule(["general"], tokenizer=str(base), cache_dir=str(tmp_path))
    assert rehearsal_cost(named) is None


def test_a_task_that_fails_later(
    tmp_path: Path, base: Path, rows: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's scores are needed; after that a failure is one line."""
    check = ForgettingCheck(["stdlib_rolling"], str(questions), max_new_tokens=2, limit=1)
    with pytest.raises(UserError, match="task stdlib_rolling scores no single items; name another"):
        fit(tmp_path / "a", base, rows, check, max_steps=1)
    check = ForgettingCheck(["stdlib_choice"], str(questions), max_new_tokens=2, limit=1)
    run_task, calls = check._run_task, []

    def fails_later(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise ValueError("broken")
        return run_task(*args)

    monkeypatch.setattr(check, "_run_task", fails_later)
    with pytest.warns(UserWarning, match="step 5: stdlib_choice failed, training continues: Val"):
        fit(tmp_path / "b", base, rows, check, max_steps=5)
    assert list(content(tmp_path / "b")["steps"][0]["changes"]) == ["questions/score"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "expected": "("}', r"questions.jsonl:1: 'pattern'"),
        ('{"prompt": "a"}', r"questions.jsonl:1: needs exactly one of"),
        (json.dumps({"prompt": "long " * 200, "exact": "b"}), "takes .* tokens; the model's cont"),
        ("", "holds no question"),
    ],
)
def test_bad_questions(tmp_path: Path, base: Path, rows: Path, text: str, said: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(UserError, match=said):
        fit(tmp_path / "run", base, rows, ForgettingCheck(questions=str(file)))
    assert not (tmp_path / "run" / "forgetting.json").exists()


def test_what_it_needs() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="ForgettingCheck needs a module with a Transformer"):
        ForgettingCheck().on_train_start(trainer, L.LightningModule())
    with pytest.raises(UserError, match="ForgettingCheck: every=-1: must be from 0"):
        ForgettingCheck(every=-1)
