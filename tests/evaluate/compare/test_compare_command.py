"""``lit_llm compare``: tables, verdicts, gates, files, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lit_llm.cli import main
from tests.evaluate.compare.evaluations import choices, texts, write_evaluation

RNG = np.random.default_rng(0)
HARD = RNG.random(400)
"""How hard each of 400 items is."""


def answers(ability: float, seed: int, count: int = 400) -> list[float]:
    """Right and wrong answers of a model."""
    noise = np.random.default_rng(seed).normal(0, 0.15, count)
    return [float(x) for x in ability + noise > HARD[:count]]


@pytest.fixture(autouse=True)
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all evaluations; the current folder holds it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "evaluations"


def compare(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """Run the command with --json."""
    capsys.readouterr()
    assert main(["compare", *args, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_four_verdicts(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = answers(0.5, 0)
    nearly = [1 - score if place in (3, 50) else score for place, score in enumerate(base)]
    for name, scores in (
        ("a", base), ("better", answers(0.75, 1)), ("worse", answers(0.25, 2)),
        ("same", nearly), ("unknown", answers(0.52, 3)),
    ):  # fmt: skip
        write_evaluation(evaluations, name, quiz=choices(scores))
    found = compare(capsys, "a", "better", "worse", "same", "unknown", "--margin", "0.02")
    claims = {claim["evaluation"]: claim for claim in found["claims"]}
    assert {name: claim["verdict"] for name, claim in claims.items()} == {
        "better": "better", "worse": "worse", "same": "the same", "unknown": "cannot tell"
    }  # fmt: skip
    for claim in claims.values():
        assert claim["difference"] == pytest.approx(claim["b"] - claim["a"])
        assert claim["low"] < claim["difference"] < claim["high"]
        assert claim["p_adjusted"] >= claim["p"] and claim["items"] == 400
    assert re.fullmatch(
        r"cannot tell: 0\.0\d+ would be found; 0\.02 needs [\d,]+ items", claims["unknown"]["said"]
    )
    assert claims["same"]["said"] == "the same within 0.02"


def test_the_table_and_the_page(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b<i>", 1)):
        write_evaluation(evaluations, name, quiz=choices(answers(0.5, seed)))
    assert main(["compare", "a", "b<i>", "--flips", "2", "--html", "out/page.html"]) == 0
    out = capsys.readouterr().out
    header = out.splitlines()[1].split()
    assert header[:4] == ["task", "metric", "A", "B"] and header[-5:] == [
        "chance", "majority", "verdict", "on", "B"
    ]  # fmt: skip
    assert "0.250     0.250" in out  # four choices; each place is right equally often
    won, lost = (
        int(re.search(rf"quiz: (\d+) items that {who} alone has right", out)[1]) for who in "BA"
    )
    a, b = (sum(answers(0.5, seed)) for seed in (0, 1))
    assert won - lost == b - a and out.count("nats") == 4
    assert "acc (--metrics)" in out and "the noise of training is unknown" in out
    assert "corrected for all 1 claims (Holm)" in out
    page = Path("out/page.html").read_text()
    assert "b&lt;i&gt;" in page and "<i>" not in page and "<script" not in page
    assert "quiz" in page and "http://" not in page and "https://" not in page


def test_equal_scores_in_clusters_are_judged_by_clusters(
    evaluations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve passages of ten questions; the questions of a passage flip together."""
    before = [0.0] * 120
    after = [float(place // 10 < 5) for place in range(120)]
    for clusters, verdict in ((None, "better"), ([place // 10 for place in range(120)], "better")):
        write_evaluation(evaluations, "a", quiz=choices(before, clusters))
        write_evaluation(evaluations, "b", quiz=choices(after, clusters))
        (claim,) = compare(capsys, "a", "b")["claims"]
        assert claim["verdict"] == verdict
        if clusters:
            assert claim["clusters"] == 12 and claim["p"] > 0.01 and claim["test"] == "t"
        else:
            assert claim["clusters"] == 120 and claim["p"] < 1e-9


def test_ratios_and_their_direction(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = RNG.uniform(500, 900, 40)
    bits = lengths * RNG.normal(2, 0.3, 40)
    write_evaluation(evaluations, "a", prose=texts(list(bits), list(lengths)))
    less = list(bits - 0.1 * lengths * RNG.normal(1, 0.2, 40))
    write_evaluation(evaluations, "b", prose=texts(less, list(lengths)))
    found = compare(capsys, "a", "b", "--metrics", "bits_per_byte", "byte_perplexity")
    ratio, perplexity = found["claims"]
    assert ratio["verdict"] == perplexity["verdict"] == "better"  # less is better
    assert ratio["difference"] == pytest.approx(-0.1, abs=0.02) and not ratio["relative"]
    assert perplexity["relative"] and perplexity["difference"] == pytest.approx(
        np.exp(0.7 * ratio["difference"]) - 1
    )
    assert perplexity["a"] == pytest.approx(np.exp(0.7 * ratio["a"]))


def test_the_mean_of_the_tasks_and_the_correction(
    evaluations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, abilities in (("a", (0.5, 0.5, 0.5)), ("b", (0.55, 0.56, 0.54))):
        tasks = {
            f"task{number}": choices(answers(ability, 10 * number + len(name) + ord(name)))
            for number, ability in enumerate(abilities)
        }
        write_evaluation(evaluations, name, **tasks)
    found = compare(capsys, "a", "b")
    *tasks, mean = found["claims"]
    assert mean["task"] == "mean of the tasks"
    assert mean["difference"] == pytest.approx(np.mean([one["difference"] for one in tasks]))
    errors = [one["standard_error"] for one in tasks]
    assert mean["standard_error"] == pytest.approx(np.sqrt(np.square(errors).sum()) / 3)
    raw = sorted(one["p"] for one in found["claims"])
    assert sorted(one["p_adjusted"] for one in found["claims"])[0] == pytest.approx(
        min(1, 4 * raw[0])
    )
    uncorrected = compare(capsys, "a", "b", "--correction", "none")
    assert [one["p"] for one in uncorrected["claims"]] == [
        one["p_adjusted"] for one in uncorrected["claims"]
    ]


def test_seeds(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs alone seem to differ; runs of the same recipe differ as much."""
    for recipe, abilities in (("a", (0.4, 0.5, 0.6)), ("b", (0.6, 0.52, 0.41))):
        for number, ability in enumerate(abilities):
            scores = answers(ability, ord(recipe) + number)
            write_evaluation(evaluations, f"{recipe}-{number}", quiz=choices(scores))
    (alone,) = compare(capsys, "a-0", "b-0")["claims"]
    assert alone["verdict"] == "better"
    found = compare(capsys, "--seeds", "a-*", "b-*")
    (claim,) = found["claims"]
    assert claim["verdict"] == "cannot tell" and claim["test"] == "t over runs"
    assert claim["standard_error"] > 2 * alone["standard_error"]
    assert len(found["evaluations"][0]["folders"]) == 3
    assert not any("training" in note for note in found["notes"])
    (one_and_three,) = compare(capsys, "--seeds", "evaluations/a-0", "b-*")["claims"]
    assert one_and_three["test"] == "t over runs"


def test_missing_items_are_named(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0, 60)), only=choices([1, 0]))
    write_evaluation(evaluations, "b", quiz=choices(answers(0.5, 1, 55)))
    found = compare(capsys, "a", "b")
    assert found["claims"][0]["items"] == 55
    assert (
        "quiz: 5 items are not in all evaluations and are left out: q55, q56, q57, ..."
        in (found["notes"])
    )
    assert "not in all evaluations, so left out: only" in found["notes"]


def test_the_best_is_reported_on_the_other_half(
    evaluations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty equal checkpoints: the best of them is not better where it was not chosen."""
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0)))
    names = [f"step{number}" for number in range(20)]
    for number, name in enumerate(names):
        write_evaluation(evaluations, name, quiz=choices(answers(0.5, 100 + number)))
    found = compare(capsys, "a", *names, "--choose_best")
    (claim,) = found["claims"]
    assert 150 < claim["items"] < 250 and claim["verdict"] == "cannot tell"
    assert (
        f"{claim['evaluation']} is the best of 20 on one half of the items; the table is of "
        in (found["notes"][-2])
    )
    every = compare(capsys, "a", *names, "--correction", "none")["claims"]
    chosen = next(one for one in every if one["evaluation"] == claim["evaluation"])
    # On all items it looks better than where it was not chosen.
    assert chosen["difference"] > claim["difference"]


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ("quiz.acc >= 0.6", True),
        ("quiz.acc>=0.9", False),
        ("quiz.acc < 0.9", True),
        ("not worse than a by 0.05", True),
        ("not worse than A by 0.05", True),
        ("quiz.acc_norm not worse than A by 0.05", True),
        ("not worse than A by -0.3", False),
    ],
)
def test_gates(
    evaluations: Path, capsys: pytest.CaptureFixture[str], gate: str, passed: bool
) -> None:
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0)))
    write_evaluation(evaluations, "b", quiz=choices(answers(0.7, 1)))
    args = ["compare", "a", "b", "--gate", "quiz.acc > 0", "--gate", gate]
    if passed:
        assert main(args) == 0
    else:
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gate ")]
    assert lines[1].startswith(f"gate {'passed' if passed else 'FAILED'}: {gate} (")


def test_not_shown_is_not_passed(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty items cannot show that a model is not worse by one point."""
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0, 40)))
    write_evaluation(evaluations, "b", quiz=choices(answers(0.5, 1, 40)))
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", "--gate", "not worse than A by 0.01"])
    assert "not shown for b in quiz.acc_norm" in capsys.readouterr().out


def test_one_alone_is_shown(evaluations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0)))
    assert main(["compare", "a", "--gate", "quiz.acc >= 0.1", "--html", "a.html"]) == 0
    out = capsys.readouterr().out
    assert "quiz  acc_norm" in out and "gate passed" in out and "training" not in out
    assert compare(capsys, "a")["claims"] == [] and "acc_norm" in Path("a.html").read_text()


def test_runs_and_files_find_their_evaluation(
    evaluations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_evaluation(evaluations, name, quiz=choices(answers(0.5, ord(name))))
    Path("runs/b/final").mkdir(parents=True)
    for first, second in (
        ("evaluations/a", "b"),
        ("evaluations/a/results.json", "runs/b"),
        ("a", "runs/b/final"),
    ):
        found = compare(capsys, first, second)
        assert [one["name"] for one in found["evaluations"]] == ["a", "b"]


def broken(folder: Path, name: str) -> None:
    """Evaluations of every kind that cannot be read."""
    write_evaluation(folder, name, quiz=choices([1, 0, 1]))
    file, items = folder / name / "results.json", folder / name / "items.parquet"
    match name:
        case "later":
            content = json.loads(file.read_text())
            file.write_text(json.dumps({**content, "schema_version": 9}))
        case "damaged":
            file.write_text("{")
        case "without-items":
            items.unlink()
        case "cut":
            items.write_bytes(items.read_bytes()[:40])
        case "without-clusters":
            pq.write_table(pq.read_table(items).drop_columns(["cluster"]), items)


MISTAKES = [
    (["a", "zz"], "zz: no evaluation of this name; evaluations holds "),
    (["a", "other-taks"], "other-taks: no evaluation of this name; did you mean other-task"),
    ([], "name the evaluations, as in lit_llm compare A B"),
    (["a", "b", "--seeds", "a", "b"], "with --seeds 'a-*' 'b-*'; not both"),
    (["--seeds", "none-*", "b"], "--seeds none-*: matches nothing here or in evaluations"),
    (["a", "evaluations/a"], "the same evaluation twice"),
    (["a", "later"], "results.json: written by a later lit_llm (schema version 9"),
    (["a", "damaged"], "results.json: is damaged (JSONDecodeError"),
    (["a", "without-items"], "items.parquet: is missing; run lit_llm evaluate again"),
    (["a", "cut"], "items.parquet: cannot be read ("),
    (["a", "without-clusters"], "items.parquet: has no column 'cluster'"),
    (["a", "other-items"], "quiz: a and other-items have no common items"),
    (["a", "other-task"], "quiz: the task (its settings or documents) differs between a and"),
    (["a", "other-template"], "quiz: the chat template differs between a and other-template"),
    (["a", "other-shots"], "quiz: the number of worked examples differs between a and"),
    (["a", "other-lengths", "--tasks", "prose"], "the items' texts have other lengths"),
    (["a", "prose-only", "--tasks", "quiz"], "prose-only has no results of it; it has prose"),
    (["quiz-only", "prose-only"], "no task is common to all: quiz-only has quiz; prose-only has"),
    (["a", "b", "--metrics", "f1"], "--metrics f1: quiz has acc_norm, acc"),
    (["a", "no-scores"], "quiz: acc_norm has no scores of single items"),
    (["f1-only", "f1-only-too"], "quiz: none of its metrics (f1) has scores of single items"),
    (["a", "b", "--gate", "quiz.f1 >= 1"], "quiz has no metric 'f1'; it has acc_norm, acc"),
    (["a", "b", "--gate", "quizz.acc >= 1"], "b has no task 'quizz'; it has quiz, prose"),
    (["a", "b", "--gate", "acc is good"], "--gate 'acc is good': is not a condition; write"),
    (["a", "b", "--gate", "not worse than c by 1"], "everything is compared with the first"),
    (["a", "--gate", "not worse than a by 1"], "nothing is compared under any name"),
    (["a", "b", "--choose_best"], "--choose_best: name a reference and two or more to choose"),
    (["a", "b", "--margin", "0"], "argument --margin: 0 must be above 0"),
    (["a", "b", "--correction", "sidak"], "argument --correction: invalid choice: 'sidak'"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_mistakes_are_one_line(
    evaluations: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    quiz, prose = choices(answers(0.5, 0, 30)), texts([5.0, 6, 7], [2, 2, 3])
    for name in ("a", "b"):
        write_evaluation(evaluations, name, quiz=quiz, prose=prose)
    shifted = choices(answers(0.5, 0, 30))
    for row in shifted["rows"]:
        row["id"] = "x" + row["id"]
    write_evaluation(evaluations, "other-items", quiz=shifted)
    write_evaluation(evaluations, "other-task", quiz={**quiz, "fingerprint": "other"})
    write_evaluation(evaluations, "other-template", quiz={**quiz, "template_sha256": "x"})
    write_evaluation(evaluations, "other-shots", quiz={**quiz, "num_fewshot": 5})
    write_evaluation(evaluations, "other-lengths", prose=texts([5.0, 6, 7], [2, 2, 4]))
    write_evaluation(evaluations, "quiz-only", quiz=quiz)
    write_evaluation(evaluations, "prose-only", prose=prose)
    write_evaluation(evaluations, "no-scores", quiz={
        **quiz, "rows": [{"id": "q0", "cluster": "q0"}],
    })  # fmt: skip
    for name in ("f1-only", "f1-only-too"):
        write_evaluation(evaluations, name, quiz={**quiz, "metrics": {"f1": {"aggregation": None}}})
    for name in args:
        if name in ("later", "damaged", "without-items", "cut", "without-clusters"):
            broken(evaluations, name)
    assert main(["compare", *args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error


def test_force_compares_different_templates(
    evaluations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(evaluations, "a", quiz=choices(answers(0.5, 0)))
    write_evaluation(evaluations, "b", quiz=choices(answers(0.5, 1), template_sha256="x"))
    assert compare(capsys, "a", "b", "--force")["claims"][0]["items"] == 400
