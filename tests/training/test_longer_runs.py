"""A run that has ended, however it ended, goes on when it is made longer: its position is the
step."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from test_examples import TINY, TheirModule, data, trainer

from lit_llm import (
    Checkpoint,
    CSVLogger,
    InstructionDataModule,
    PretrainModule,
    SFTModule,
    UserError,
)
from lit_llm.data.packing import PackedOrder
from lit_llm.models.lora import LoRAConfig, is_lora

ADAMW: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "compile": False}
LONG, SHORT, ACCUMULATION = 8, 4, 2


def source(corpus: Path, steps: int, **kwargs: Any) -> L.LightningDataModule:
    settings = {"global_batch_tokens": 32 * 4 * ACCUMULATION, "validate_every": 3, **kwargs}
    return data(corpus, steps=steps * ACCUMULATION, **settings)


class Seen(L.Callback):
    """Notes step, samples and rate of every micro-batch."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, list[int]]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples.append((trainer.global_step, batch["sample_id"].tolist()))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


MODULES: dict[str, Any] = {
    "ours": lambda: PretrainModule(TINY, **ADAMW),
    "theirs": lambda: TheirModule(512),
}


class Whole:
    """A run of LONG steps that nothing stops."""

    def __init__(self, folder: Path, corpus: Path, module: L.LightningModule):
        self.seen, self.folder, self.module = Seen(), folder, module
        run = trainer(folder, callbacks=[self.seen], logger=CSVLogger(folder), log_every_n_steps=1,
                      limit_val_batches=1, enable_checkpointing=False)  # fmt: skip
        run.fit(module, source(corpus, LONG))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Whole]:
    made = {}
    for name, make in MODULES.items():
        L.seed_everything(0)
        made[name] = Whole(tmp_path_factory.mktemp(name), corpus, make())
    return made


ENDS: dict[str, Any] = {
    "its own end": (SHORT, {}),
    "limit_train_batches": (LONG, {"limit_train_batches": SHORT * ACCUMULATION}),
    "a share of the batches": (LONG, {"limit_train_batches": SHORT / LONG}),
}


@pytest.mark.parametrize(
    ("end", "kind", "saved_by"),
    [
        *((end, "ours", "Checkpoint") for end in ENDS),
        ("its own end", "theirs", "Checkpoint"),
        ("its own end", "ours", "ModelCheckpoint"),
        ("a share of the batches", "theirs", "ModelCheckpoint"),
        ("its own end", "ours", "save_checkpoint"),
        ("limit_train_batches", "theirs", "save_checkpoint"),
    ],
)
def test_a_finished_run_is_made_longer(
    tmp_path: Path, corpus: Path, wholes: dict[str, Whole], end: str, kind: str, saved_by: str
) -> None:
    (steps, stop), whole, seen = ENDS[end], wholes[kind], Seen()
    if saved_by == "ModelCheckpoint":
        saver: L.Callback = ModelCheckpoint(
            tmp_path, "saved", save_on_train_epoch_end=True, enable_version_counter=False
        )
    else:
        saver = Checkpoint()
    kwargs: dict[str, Any] = {"log_every_n_steps": 1, "limit_val_batches": 1}
    L.seed_everything(0)
    run = trainer(tmp_path, callbacks=[saver, seen], logger=CSVLogger(tmp_path), **kwargs, **stop)
    run.fit(MODULES[kind](), source(corpus, steps))
    assert run.global_step == SHORT
    file = tmp_path / "saved.ckpt"
    if saved_by == "save_checkpoint":
        run.save_checkpoint(file)
    elif saved_by == "Checkpoint":
        file = tmp_path / "checkpoints" / f"step-{SHORT:08d}.ckpt"

    module = MODULES[kind]()
    saver = Checkpoint() if saved_by == "Checkpoint" else ModelCheckpoint(tmp_path, "{step}-again")
    again = trainer(tmp_path, callbacks=[saver, seen], logger=CSVLogger(tmp_path), **kwargs)
    again.fit(module, source(corpus, LONG), ckpt_path=file, weights_only=False)
    assert again.global_step == LONG
    assert seen.samples == whole.seen.samples
    got, expected = rows(tmp_path), rows(whole.folder)
    if kind == "theirs":  # nothing depends on the length: the same run
        losses = [[row["loss"] for row in table if row["loss"]] for table in (got, expected)]
        assert losses[0] == losses[1]
    else:  # and the rates of the new horizon
        assert [int(row["step"]) for row in got] == list(range(1, LONG + 1))
        assert [row["lr"] for row in got[SHORT:]] == [row["lr"] for row in expected[SHORT:]]
    if kind == "theirs" or end != "its own end":  # the same schedule all along: the same run
        assert all(map(torch.equal, module.parameters(), whole.module.parameters()))


def test_what_ends_before_the_checkpoint_is_refused_and_what_is_done_is_told(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    run = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=0)
    run.fit(PretrainModule(TINY, **ADAMW), source(corpus, SHORT))
    file = run.checkpoint_callback.last_model_path

    def go_on(steps: int, **kwargs: Any) -> None:
        again = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=0, **kwargs)
        again.fit(
            PretrainModule(TINY, **ADAMW), source(corpus, steps), ckpt_path=file, weights_only=False
        )

    with pytest.raises(UserError, match=r"data.tokens=768 ends before the checkpoint"):
        go_on(SHORT - 1)
    with pytest.raises(UserError, match=r"trainer.limit_train_batches=6 ends before .* step 4"):
        go_on(LONG, limit_train_batches=6)
    with pytest.raises(UserError, match=r"trainer.max_steps=3 ends before .* step 4"):
        go_on(LONG, max_steps=3)
    with caplog.at_level("INFO"):
        go_on(SHORT)
    assert "nothing is left to train: step 4 of 4 is done" in caplog.text


def conversations(folder: Path, count: int = 21) -> Path:
    lines = [
        {"prompt": f"What is {i} plus {i}?", "completion": f"{i + i}, of course."}
        for i in range(count)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[str, Any]:
    """A base, and what makes a data module of so many epochs for it."""
    folder = tmp_path_factory.mktemp("finetuning")
    base = trainer(folder, callbacks=[Checkpoint()], limit_val_batches=0)
    base.fit(PretrainModule(TINY, **ADAMW), source(corpus, 2, seq_len=64, micro_batch_size=2))
    file, template = conversations(folder), folder / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    def rows(epochs: float) -> InstructionDataModule:
        return InstructionDataModule(
            sources=str(file), chat_template=str(template), seq_len=64, micro_batch_size=4,
            packing=False, epochs=epochs, validation_fraction=0.2,
        )  # fmt: skip

    return str(folder / "final"), rows


def test_more_epochs_of_finetuning(tmp_path: Path, finetuning: tuple[str, Any]) -> None:
    init_from, make = finetuning

    def fit(name: str, epochs: float, ckpt_path: str | None = None) -> tuple[L.Trainer, Seen]:
        seen, rows = Seen(), make(epochs)
        run = trainer(tmp_path / name, callbacks=[Checkpoint(), seen], limit_val_batches=0)
        run.fit(
            SFTModule(init_from, compile=False, validate_first=False), rows, ckpt_path=ckpt_path
        )
        return run, seen

    one, first = fit("run", 1)
    two, second = fit("run", 2, one.checkpoint_callback.last_model_path)
    _, all_of_it = fit("whole", 2)
    assert two.global_step == len(all_of_it.samples) > one.global_step
    # What a step sees is a function of the step alone; the first run had no rows to fill its last
    # step up.
    assert first.samples[:-1] + second.samples == [
        *all_of_it.samples[: one.global_step - 1],
        *all_of_it.samples[one.global_step :],
    ]


def test_averaged_updates_are_saved_without_their_base(
    tmp_path: Path, finetuning: tuple[str, Any]
) -> None:
    init_from, make = finetuning

    def fit(epochs: float, ckpt_path: str | None = None) -> dict[str, Any]:
        module = SFTModule(init_from, LoRAConfig(rank=2), compile=False, validate_first=False)
        run = trainer(tmp_path, callbacks=[EMAWeightAveraging(), Checkpoint()], limit_val_batches=0)
        run.fit(module, make(epochs), ckpt_path=ckpt_path)
        file = tmp_path / "checkpoints" / f"step-{run.global_step:08d}.ckpt"
        return {**torch.load(file, weights_only=True), "path": str(file)}

    first = fit(1)
    second = fit(2, first["path"])
    for saved in (first, second):
        for kind in ("state_dict", "current_model_state"):
            assert saved[kind] and all(is_lora(name) for name in saved[kind])
    assert second["global_step"] > first["global_step"]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    epochs=st.floats(0.1, 2.5),
    more=st.floats(0.1, 2.5),
    seed=st.integers(0, 9),
    packing=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_rows_of_fewer_epochs_begin_those_of_more(
    lengths: list[int], epochs: float, more: float, seed: int, packing: bool
) -> None:
    short, long = (
        PackedOrder(np.array(lengths), 40, e, seed, packing).rows for e in (epochs, epochs + more)
    )
    assert long[: len(short)] == short


@given(
    step=st.integers(0, 50),
    accumulation=st.integers(1, 5),
    length=st.integers(1, 60),
    counts=st.integers(0, 300),
    epochs=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_place_depends_on_the_step_and_the_length_of_now_alone(
    step: int, accumulation: int, length: int, counts: int, epochs: int
) -> None:
    from lit_llm.lightning_internals import place

    def saved(counts: int, epochs: int) -> dict[str, Any]:
        names = ("ready", "started", "processed", "completed")
        return {
            "epoch_loop.state_dict": {"_batches_that_stepped": counts},
            "epoch_loop.batch_progress": {
                "total": dict.fromkeys(names, counts), "current": dict.fromkeys(names, counts),
                "is_last_batch": counts % 2 == 0,
            },
            "epoch_progress": {
                "total": dict.fromkeys(names, epochs), "current": dict.fromkeys(names, epochs),
            },
        }  # fmt: skip

    one, other = saved(counts, epochs), saved(0, 0)
    for state in (one, other):
        place(state, step, accumulation, length * accumulation)
    assert one == other
    assert one["epoch_progress"]["current"]["processed"] == (step >= length)
    assert one["epoch_loop.batch_progress"]["current"]["ready"] == step * accumulation


class ReadsItsLength(PretrainModule):
    """As many do: the Trainer makes the loaders before it knows the checkpoint's step."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def test_a_module_that_reads_its_length_resumes_at_the_right_samples(
    tmp_path: Path, corpus: Path, wholes: dict[str, Whole]
) -> None:
    seen = Seen()
    kwargs: dict[str, Any] = {"limit_val_batches": 0}
    first = trainer(tmp_path, callbacks=[Checkpoint(), seen], max_steps=3, **kwargs)
    first.fit(ReadsItsLength(TINY, **ADAMW), source(corpus, LONG, num_workers=1))
    second = trainer(tmp_path, callbacks=[Checkpoint(), seen], **kwargs)
    second.fit(
        ReadsItsLength(TINY, **ADAMW), source(corpus, LONG, num_workers=1),
        ckpt_path=first.checkpoint_callback.last_model_path,
    )  # fmt: skip
    assert seen.samples == wholes["ours"].seen.samples


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_epochs": 3}, r"trainer.max_epochs=3: the length of a run is data.tokens=2048"),
        ({"max_epochs": 0}, "trainer.max_epochs=0: "),
        ({"max_epochs": -1}, "trainer.max_epochs=-1: "),
        ({"max_epochs": 1000, "max_steps": 4}, "trainer.max_epochs=1000: "),
        ({"max_epochs": 1000, "max_time": "00:01:00:00"}, "trainer.max_epochs=1000: "),
        ({"accumulate_grad_batches": 3}, "accumulate_grad_batches=3 .*which give 2"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs=1: "),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "tokens of a step"),
        ({"min_epochs": 2}, "trainer.min_epochs=2"),
        ({"min_steps": 99}, r"trainer.min_steps=99 is more than the run's 8 steps"),
        ({"overfit_batches": 2}, "trainer.overfit_batches=2: "),
        ({"check_val_every_n_epoch": 2}, r"trainer.check_val_every_n_epoch=2: .*validate_every"),
        ({"limit_train_batches": 3}, r"limit_train_batches=3 ends within .* nearest are 2 and 4"),
        ({"limit_train_batches": 1}, r"limit_train_batches=1 ends within .* nearest are 2$"),
    ],
)
def test_a_length_that_is_not_the_datas_is_refused(
    tmp_path: Path, corpus: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        trainer(tmp_path, **settings).fit(TheirModule(512), source(corpus, LONG))


@pytest.mark.parametrize(
    ("settings", "steps", "validated"),
    [
        ({"max_epochs": None}, LONG, [3, 6, 8]),
        ({"max_epochs": -1, "max_steps": 5}, 5, [3, 5]),
        ({"max_epochs": -1, "max_time": "00:01:00:00"}, LONG, [3, 6, 8]),
        ({"max_epochs": 1, "max_steps": 2}, 2, [2]),
        ({"accumulate_grad_batches": ACCUMULATION}, LONG, [3, 6, 8]),
        # In micro-batches, as Lightning has it, and in parts of the epoch.
        ({"val_check_interval": 4}, LONG, [2, 4, 6, 8]),
        ({"val_check_interval": 0.5}, LONG, [4, 8]),
        ({"val_check_interval": 10, "check_val_every_n_epoch": None}, LONG, [5, 8]),
        ({"limit_train_batches": 4}, 2, [2]),
        ({"limit_train_batches": 0.5}, LONG // 2, [3, 4]),
        # The float takes whole steps: three of the eight.
        ({"limit_train_batches": 0.4}, 3, [3]),
        ({"min_steps": 3}, LONG, [3, 6, 8]),
        ({"limit_val_batches": 0}, LONG, []),
    ],
)
def test_what_a_user_sets_on_the_trainer_is_honoured(
    tmp_path: Path, corpus: Path, settings: dict[str, Any], steps: int, validated: list[int]
) -> None:
    class Validations(L.Callback):
        at: list[int] = []

        def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
            self.at.append(trainer.global_step)

    seen, defaults = Validations(), {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    seen.at = []
    run = trainer(tmp_path, callbacks=[seen, Checkpoint()], **{**defaults, **settings})
    run.fit(TheirModule(512), source(corpus, LONG))
    assert run.global_step == steps and seen.at == validated


def test_a_maximum_beyond_the_end_is_told(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, max_steps=99, limit_val_batches=0, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="max_steps=99 is beyond the end .*makes 8 steps"):
        run.fit(TheirModule(512), source(corpus, LONG))
    assert run.global_step == LONG


def test_a_fast_dev_run_takes_whole_steps_validates_and_writes_nothing(
    tmp_path: Path, corpus: Path
) -> None:
    run = trainer(tmp_path, callbacks=[Checkpoint()], fast_dev_run=2)
    run.fit(PretrainModule(TINY, **ADAMW), source(corpus, LONG))
    assert run.global_step == 2 and "val_loss" in run.callback_metrics
    assert not list(tmp_path.iterdir())


def test_an_interval_in_minutes_is_the_trainers(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, val_check_interval="00:01:00:00", enable_checkpointing=False)
    run.fit(TheirModule(512), source(corpus, 2))
    assert run.global_step == 2
