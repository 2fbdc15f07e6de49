"""kill -9 at any moment, then the same command with --ckpt_path last: the run goes on bit for
bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from driver import STEPS, consumed, metrics, output, run, weights

from lit_llm.errors import Preempted
from lit_llm.training.callbacks.checkpoint_folder import checkpoints, damage, newest_whole

# All of the validation text: two batches a process would be other ones on two. At this width's
# default rate, 0.014, runs of one and of two processes that nobody kills differ by 2e-2 of the loss
# within 240 steps; at this one by 2e-7.
EXACT = ("--trainer.precision", "32-true", "--model.optimizer", "adamw", "--model.learning_rate",
         "3e-4", "--model.compile", "false", "--trainer.limit_val_batches", "1.0")  # fmt: skip


def kills(seed: int, accumulation: int, count: int) -> list[list]:
    """Moments to kill at: any micro-batch, a checkpoint's writing, a validation or a row's
    writing."""
    rng = random.Random(seed)
    moments: list[list] = [["save", 2], ["rename", 2], ["beside", 2], ["validation", 2], ["row", 5]]
    moments += [["batch", rng.randint(2, 10 * accumulation)] for _ in range(count - len(moments))]
    rng.shuffle(moments)
    return moments


def check_same(killed: Path, whole: Path, exact: bool = True) -> None:
    """``killed`` went on as if nothing had been: with the same samples, and the same bits where
    ``exact``."""
    assert consumed(killed) == consumed(whole)
    assert (killed / "samples.jsonl").read_text().count("\n") == (
        whole / "samples.jsonl"
    ).read_text().count("\n")
    if exact:
        assert metrics(killed) == metrics(whole)
        assert weights(killed) == weights(whole)
        assert (killed / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    for mine, theirs in zip(metrics(killed), metrics(whole), strict=True):
        assert mine["step"] == theirs["step"]
        for key in ("train_loss", "val_loss", "lr"):
            assert (mine[key] == "") == (theirs[key] == "")
            assert not mine[key] or float(mine[key]) == pytest.approx(
                float(theirs[key]), rel=1e-5
            ), key


def check_kills(
    tmp_path: Path, corpus: Path, *settings: str, kills: list[list], **shape: int
) -> None:
    """One command again and again, until nobody kills it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, corpus, *settings, **shape) == 0
    statuses = [
        run(killed, corpus, *settings, "--ckpt_path", "auto", kill=kill, **shape) for kill in kills
    ]
    assert set(statuses) == {-signal.SIGKILL}
    assert run(killed, corpus, *settings, "--ckpt_path", "auto", **shape) == 0
    assert "resuming from" in output(killed)
    check_same(killed, whole)


CHANGING = [{"step": 0, "weights": {"a": 1, "b": 2}}, {"step": 10, "weights": {"a": 3, "c": 1}}]


def test_killed_run_of_a_changing_mixture_continues_bit_equal(
    tmp_path: Path, three_sources: Path
) -> None:
    settings = ("--data.mixture", json.dumps(CHANGING))
    check_kills(
        tmp_path, three_sources, *settings, kills=kills(17, 3, 6), workers=2, accumulation=3
    )


@pytest.mark.slow
def test_killed_run_of_two_processes_continues_bit_equal(
    tmp_path: Path, three_sources: Path
) -> None:
    settings = ("--data.mixture", json.dumps(CHANGING))
    check_kills(
        tmp_path,
        three_sources,
        *settings,
        kills=[["beside", 2], ["batch", 11]],
        accumulation=2,
        ranks=2,
    )


@pytest.mark.slow
def test_killed_while_two_processes_write_parts(tmp_path: Path, corpus: Path) -> None:
    """One of them or both, with half a part, all parts, half a manifest, or all but the name on
    disk."""
    shape, auto = {"ranks": 2, "strategy": "fsdp2"}, ("--ckpt_path", "auto")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    left = killed / "checkpoints" / "step-00000008.ckpt.part"
    assert run(whole, corpus, **shape) == 0
    # The first call writes step 4, the best at step 6 and step 8, the others the last two of them.
    for kill, said in (
        (["part", 3, 1], "it has no manifest.json: it was not finished"),
        (["part", 2], "it has no manifest.json: it was not finished"),
        (["parts", 2], "it has no manifest.json: it was not finished"),
        (["manifest", 2], "manifest.json is not readable: JSONDecodeError"),
        (["rename", 2], None),
    ):
        assert run(killed, corpus, *auto, kill=kill, **shape) == -signal.SIGKILL
        newest, reasons = newest_whole(left.parent)
        assert newest == (left if said is None else left.with_name("step-00000004.ckpt"))
        assert [reason.startswith(f"{left} is damaged ({said}") for reason in reasons] == [True] * (
            said is not None
        )
    assert run(killed, corpus, *auto, **shape) == 0
    told = output(killed)
    assert (
        told.count(
            f"{left} is damaged (it has no manifest.json: it was not finished): the steps since"
        )
        == 3
    )
    assert told.count(f"{left} is damaged (manifest.json is not readable") == 1
    assert told.count("resuming from") == 5 and told.count(f"resuming from {left}") == 1
    assert not list(left.parent.glob("*.part")) and not list(left.parent.glob("abandoned-*"))
    check_same(killed, whole)


def test_killed_and_continued_by_other_numbers_of_processes(
    tmp_path: Path, three_sources: Path
) -> None:
    """Two, one, two, with one global batch of twelve samples."""
    settings = ("--data.mixture", json.dumps(CHANGING), *EXACT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, three_sources, *settings, accumulation=6) == 0
    for ranks, accumulation, kill in ((2, 3, ["batch", 20]), (1, 6, ["save", 2]), (2, 3, None)):
        status = run(killed, three_sources, *settings, "--ckpt_path", "auto", kill=kill,
                     ranks=ranks, accumulation=accumulation)  # fmt: skip
        assert status == (-signal.SIGKILL if kill else 0)
    check_same(killed, whole, exact=False)


def test_a_mixture_may_change_on_resume_and_is_kept(tmp_path: Path, three_sources: Path) -> None:
    """New weights from the step of the resume on: as if they had been announced from the start."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    first, second = (json.dumps(phase["weights"]) for phase in CHANGING)
    assert (
        run(
            whole,
            three_sources,
            "--data.mixture",
            json.dumps(CHANGING),
            "--data.validate_every",
            "100",
        )
        == 0
    )
    later = ("--data.validate_every", "100", "--ckpt_path", "last")
    assert (
        run(
            changed, three_sources, "--data.mixture", first, "--trainer.max_steps", "10", *later[:2]
        )
        == 0
    )
    assert (
        run(changed, three_sources, "--data.mixture", second, "--trainer.max_steps", "16", *later)
        == 0
    )
    assert run(changed, three_sources, "--data.mixture", second, *later) == 0
    assert consumed(changed) == consumed(whole)
    assert weights(changed) == weights(whole)
    assert run(changed, three_sources, *later) == 2  # without any mixture


@pytest.mark.slow
@pytest.mark.parametrize(
    "topologies",
    [
        [{"accumulation": 3}],
        [{"accumulation": 1, "workers": 2}],
        [{"accumulation": 2, "ranks": 2}],
        [{"accumulation": 2, "ranks": 2, "workers": 2, "strategy": "fsdp2"}],
        [{"accumulation": 3, "ranks": 2}, {"accumulation": 6, "workers": 2}],
    ],
    ids=["one", "workers", "ddp", "fsdp2", "two-one-two"],
)
def test_ten_kills_at_random(tmp_path: Path, three_sources: Path, topologies: list[dict]) -> None:
    """At any moment after the first batch; with other numbers of processes in turn, where there are
    several."""
    steps, rng = 240, random.Random(len(str(topologies)))
    mixture = [{**phase, "step": phase["step"] * steps // STEPS} for phase in CHANGING]
    settings = ("--data.mixture", json.dumps(mixture), "--data.validate_every", "40", *EXACT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, three_sources, *settings, steps=steps, **topologies[-1]) == 0
    seconds = json.loads((whole / "run.json").read_text())["seconds"]
    in_parts = topologies[0].get("strategy") == "fsdp2"
    hits = finished = 0
    while hits < 10 or not finished:
        kill: list | None = ["time", rng.uniform(0, 0.2 * seconds)] if hits < 10 else None
        if kill and in_parts and hits % 2:  # too short a moment to be hit by chance
            kill = [rng.choice(("part", "parts", "manifest", "rename")), rng.randint(1, 12)]
            kill += [1] if kill[0] == "part" and rng.random() < 0.5 else []
        status = run(killed, three_sources, *settings, "--ckpt_path", "auto", kill=kill,
                     steps=steps, **topologies[hits % len(topologies)])  # fmt: skip
        assert status in (0, -signal.SIGKILL)
        hits += status != 0
        if status == 0:  # else it goes on
            finished += 1
            check_same(killed, whole, exact=len(topologies) == 1)
            shutil.rmtree(killed)
            killed.with_name("killed.ids").unlink()


def test_killed_run_with_value_embeddings_and_smear_continues_bit_equal(
    tmp_path: Path, corpus: Path
) -> None:
    shape = {"preset": "fast-5m", "hidden_size": 32, "num_layers": 2, "value_embeddings": [0, 1],
             "value_gate_channels": 12, "embedding_mix": True, "backout_layer": 0}  # fmt: skip
    settings = ("--model.transformer", json.dumps(shape), "--data.mask_documents", "true")
    moments = [["batch", 5], ["save", 2], ["batch", 9]]
    check_kills(tmp_path, corpus, *settings, kills=moments, accumulation=2)


def test_stopped_by_max_steps_goes_on_with_more(tmp_path: Path, corpus: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, corpus, "--data.validate_every", "100") == 0
    assert run(parts, corpus, "--data.validate_every", "100", "--trainer.max_steps", "9") == 0
    # Either way a run ends with a validation.
    assert [row["val_loss"] != "" for row in metrics(whole)] == [False] * (STEPS - 1) + [True]
    assert [row["val_loss"] != "" for row in metrics(parts)] == [False] * 8 + [True]
    assert run(parts, corpus, "--data.validate_every", "100", "--ckpt_path", "last") == 0
    assert weights(parts) == weights(whole)
    assert consumed(parts) == consumed(whole)
    assert [row["train_loss"] for row in metrics(parts)] == [
        row["train_loss"] for row in metrics(whole)
    ]


def test_accumulation_may_change_on_resume(tmp_path: Path, corpus: Path) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    small = [
        "--data.global_batch_tokens",
        str(2 * 32 * 3),
        "--data.tokens",
        str(2 * 32 * 3 * STEPS),
    ]
    assert run(whole, corpus, *small) == 0
    assert run(changed, corpus, *small, "--trainer.max_steps", "8") == 0
    assert run(changed, corpus, *small, "--data.micro_batch_size", "6", "--ckpt_path", "last") == 0
    assert [int(row["step"]) for row in metrics(changed)] == list(range(1, STEPS + 1))
    assert consumed(changed) == consumed(whole)
    for a, b in zip(metrics(whole), metrics(changed), strict=True):
        # Bf16, other batch shapes
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=2e-3)


def test_resuming_an_earlier_checkpoint_sets_later_ones_aside(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--checkpoint.keep_last", "9", "--trainer.max_steps", "16") == 0
    early = folder / "checkpoints" / "step-00000004.ckpt"
    assert run(folder, corpus, "--trainer.max_steps", "8", "--ckpt_path", str(early)) == 0
    names = sorted(f.name for f in (folder / "checkpoints").glob("step-*"))
    assert names == ["step-00000004.ckpt", "step-00000008.ckpt"]
    assert (folder / "checkpoints" / "abandoned-step-00000016.ckpt").exists()


def test_what_was_resumed_from_elsewhere_is_saved_here_at_once(
    tmp_path: Path, corpus: Path
) -> None:
    whole, first, told = tmp_path / "whole", tmp_path / "first", tmp_path / "told"
    assert run(whole, corpus) == 0
    assert run(first, corpus, "--trainer.max_steps", "6") == 0
    best = (
        "--ckpt_path",
        str(first / "checkpoints" / "best.ckpt"),
        "--checkpoint.background",
        "false",
    )
    assert run(told, corpus, *best, kill=["terminate", 1, 0]) == Preempted.status
    assert "saved step 6" in output(told) and [
        f.stem for f in checkpoints(told / "checkpoints")
    ] == ["step-00000006"]
    killed = tmp_path / "killed"
    assert run(killed, corpus, *best, kill=["batch", 2]) == -signal.SIGKILL
    assert run(killed, corpus, "--ckpt_path", "last") == 0
    assert metrics(killed) == metrics(whole)[6:] and weights(killed) == weights(whole)


def spoil(file: Path, harm: str) -> None:
    """Do to ``file`` what disks do."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "truncated": content[: len(content) // 2]}.get(harm, b""))
    if harm == "gone":
        file.unlink()


@pytest.mark.parametrize(
    "harm",
    ["flipped", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("truncated", "empty"))],
)
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, corpus: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--checkpoint.keep_last", "9", "--trainer.max_steps", "16") == 0
    whole = metrics(folder)
    files = checkpoints(folder / "checkpoints")
    spoil(files[-1], harm)
    assert damage(files[-2]) is None and damage(files[-1]) is not None
    assert run(folder, corpus, "--ckpt_path", str(files[-1])) == 2
    assert run(folder, corpus, "--trainer.max_steps", "16", "--ckpt_path", "last") == 0
    assert metrics(folder) == whole
    for file in checkpoints(folder / "checkpoints"):
        file.write_bytes(b"PK")
    assert run(folder, corpus, "--ckpt_path", "last") == 2


@pytest.mark.parametrize(
    ("strategy", "broken", "harm", "said"),
    [
        pytest.param("ddp", "", "truncated", "BadZipFile", marks=pytest.mark.slow),
        ("fsdp2", "part-00001.safetensors", "truncated", "part-00001.safetensors has "),
        pytest.param("fsdp2", "part-00000.safetensors", "flipped", "the checksum of "
                                                                   "part-00000.safetensors is "
                                                                   "another",
                     marks=pytest.mark.slow),
        pytest.param("fsdp2", "part-00001.safetensors", "gone", "part-00001.safetensors: No such "
                                                                "file",
                     marks=pytest.mark.slow),
        pytest.param("fsdp2", "rest.pt", "flipped", "the checksum of rest.pt is "
                                                    "another", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_two_processes_go_back_to_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, corpus: Path, strategy: str, broken: str, harm: str, said: str
) -> None:
    shape = {"ranks": 2, "strategy": strategy}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run(whole, corpus, **shape) == 0
    assert run(folder, corpus, "--trainer.max_steps", "16", **shape) == 0
    before, newest = checkpoints(folder / "checkpoints")
    spoil(newest / broken, harm)
    assert run(folder, corpus, "--ckpt_path", "auto", **shape) == 0
    assert f"{newest} is damaged ({said}" in output(folder) and f"resuming from {before}" in output(
        folder
    )
    assert metrics(folder)[16:] == metrics(whole)[16:] and consumed(folder) == consumed(whole)
    assert weights(folder) == weights(whole)


def test_auto_starts_where_nothing_is_saved_and_resumes_where_something_is(
    tmp_path: Path, corpus: Path
) -> None:
    folder, auto = tmp_path / "run", ("--ckpt_path", "auto")
    assert run(folder, corpus, *auto, kill=["batch", 3]) == -signal.SIGKILL
    assert run(folder, corpus, *auto, "--trainer.max_steps", "4") == 0
    assert "set aside" in output(folder) and (tmp_path / "run.started-1" / "config.yaml").exists()
    assert run(folder, corpus, *auto) == 0
    assert run(folder, corpus, *auto) == 0  # nothing is left to do
    assert [int(row["step"]) for row in metrics(folder)] == list(range(1, STEPS + 1))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("not a run's")
    assert run(mine, corpus, *auto) == 2 and (mine / "thesis.tex").exists()


def test_nothing_to_resume_and_a_used_folder(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--ckpt_path", "last") == 2
    assert run(folder, corpus, "--trainer.max_steps", "1") == 0
    assert run(folder, corpus) == 2


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path: Path, corpus: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, corpus, accumulation=3) == 0
    assert run(stopped, corpus, kill=["interrupt", 20, 0], accumulation=3) == 130  # in step 7
    assert (
        sorted(f.name for f in (stopped / "checkpoints").glob("step-*"))[-1] == "step-00000007.ckpt"
    )
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run(stopped, corpus, "--ckpt_path", "last", accumulation=3) == 0
    assert metrics(stopped) == metrics(whole)
    assert weights(stopped) == weights(whole)


def test_sigterm_saves_the_step_and_asks_to_be_requeued(tmp_path: Path, corpus: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, corpus, accumulation=3) == 0
    # In step 7
    assert run(stopped, corpus, kill=["terminate", 20, 0], accumulation=3) == Preempted.status
    assert (
        sorted(f.name for f in (stopped / "checkpoints").glob("step-*"))[-1] == "step-00000007.ckpt"
    )
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run(stopped, corpus, "--ckpt_path", "last", accumulation=3) == 0
    assert metrics(stopped) == metrics(whole)
    assert weights(stopped) == weights(whole)


def test_sigterm_to_a_whole_process_group_leaves_the_loaders_workers_at_work(
    tmp_path: Path, corpus: Path
) -> None:
    """As Ctrl-C in a terminal, a scheduler's signal goes to all processes of a group."""
    shape = {"workers": 2, "accumulation": 3}
    # In step 7
    assert run(tmp_path / "run", corpus, kill=["group", 20, 0], **shape) == Preempted.status
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000007.ckpt"


@pytest.mark.parametrize(
    ("strategy", "rank"),
    [pytest.param("ddp", 0, marks=pytest.mark.slow), ("ddp", 1),
     pytest.param("fsdp2", 0, marks=pytest.mark.slow), ("fsdp2", 1)],
)  # fmt: skip
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(
    tmp_path: Path, corpus: Path, strategy: str, rank: int
) -> None:
    folder, shape = tmp_path / "run", {"ranks": 2, "accumulation": 2, "strategy": strategy}
    assert run(folder, corpus, kill=["terminate", 5, rank], **shape) == Preempted.status
    # It came as the third step began, before which the processes ask each other.
    assert [f.name for f in (folder / "checkpoints").glob("step-*")] == ["step-00000002.ckpt"]
    assert run(folder, corpus, "--ckpt_path", "last", **shape) == 0
    steps = [row["step"] for row in metrics(folder)]
    assert steps == sorted(set(steps), key=int)
