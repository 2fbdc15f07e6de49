"""NeptuneLogger without a network: every point and every hyperparameter comes back, whatever cuts
the run short."""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import dataclasses
import enum
import json
import math
import pickle
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.training.neptune.logger import NeptuneLogger
from lit_llm.training.neptune.offline import offline_containers, read_offline

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def no_network() -> Iterator[None]:
    """Any attempt to reach the network fails, also one that the client would swallow."""
    attempts: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(args)
        raise OSError("no network here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
    assert not attempts


def same(
    points: list[tuple[float | None, float]], expected: list[tuple[float | None, float]]
) -> bool:
    """Equality in which nan equals nan."""
    return repr(points) == repr(expected)


def test_points_reach_the_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = NeptuneLogger(tmp_path / "run", name="mine", tags=["b", "a"])
    logger.log_metrics({"train_loss": 2.5, "tokens": 2.0**40, "epoch": 0}, step=1)
    logger.log_metrics({"train_loss": torch.tensor(2.25)}, step=np.int64(2))
    logger.log_metrics({"loose": 1.0})
    # Not finalized: this is what a killed process leaves.
    series, attributes = read_offline(tmp_path / "run")
    assert series["training/train_loss"] == [(1, 2.5), (2, 2.25)]
    assert series["training/tokens"] == [(1, 2.0**40)]
    assert series["training/loose"] == [(None, 1.0)]
    assert attributes["sys/name"] == "mine" and attributes["sys/tags"] == ["a", "b"]
    logger.finalize("success")
    series, attributes = read_offline(tmp_path / "run" / ".neptune")
    assert attributes["training/status"] == "success" and attributes["sys/failed"] is False
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_folder_may_be_named_later(tmp_path: Path) -> None:
    logger = NeptuneLogger()
    assert logger.save_dir is None
    logger.save_dir = tmp_path / "run"
    logger.log_metrics({"a": 1.0}, step=1)
    assert logger.save_dir == str(tmp_path / "run")
    assert read_offline(tmp_path / "run")[0] == {"training/a": [(1, 1.0)]}


def test_values_that_are_not_finite_come_back_in_their_place(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path)
    for step, value in enumerate([1.0, math.nan, 2.0, math.inf, -math.inf]):
        logger.log_metrics({"train_loss": value, "group/loss": value}, step=step)
    series, _ = read_offline(tmp_path)
    expected: list[tuple[float | None, float]] = [
        (0, 1.0),
        (1, math.nan),
        (2, 2.0),
        (3, math.inf),
        (4, -math.inf),
    ]
    assert same(series["training/train_loss"], expected) and same(
        series["training/group/loss"], expected
    )
    assert len(series) == 2


@FEW
@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from(["a", "a/b", "a/b/c", "b", "status", "hyperparams", "x y.z"]),
                st.floats(),
                min_size=1,
            ),
            st.integers(0, 5),
        ),
        max_size=8,
    )
)
def test_any_names_and_values_come_back(
    tmp_path_factory: Any, calls: list[tuple[dict[str, float], int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    logger, expected = NeptuneLogger(folder), {}
    logger.log_hyperparams({"a": 1})
    for metrics, step in calls:
        logger.log_metrics(metrics, step=step)
        for name, value in metrics.items():
            expected.setdefault(f"training/{name}", {})[step] = value
    logger.finalize("success")
    series, attributes = read_offline(folder)
    assert same(
        sorted(series.items()),
        sorted((name, sorted(points.items())) for name, points in expected.items()),
    )
    assert attributes["training/status"] == "success" and attributes["training/hyperparams/a"] == 1


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Size:
    width: int = 3
    dtype: torch.dtype = torch.float32


HYPERPARAMETERS: list[tuple[Any, Any]] = [
    (True, True), (0, 0), (-3, -3), (2**31 - 1, 2**31 - 1), (10**10, 1e10),
    (2**63 + 1, str(2**63 + 1)), (1e-30, 1e-30), (-0.5, -0.5), (math.nan, "nan"), (math.inf, "inf"),
    (-math.inf, "-inf"), ("", ""), ("1e-3", "1e-3"), ("ü\u2028\n", "ü\u2028\n"), (None, "None"),
    ([], "[]"), ({}, "{}"), ([1, "a", None, [2.5]], "[1, 'a', None, [2.5]]"), ((1, 2), "[1, 2]"),
    ({"b", "a"}, "['a', 'b']"), ([{"a": np.float32(0.5)}], "[{'a': 0.5}]"),
    (range(3), "range(0, 3)"), (b"x", "b'x'"), (1j, "1j"), (np.float64(0.1), 0.1),
    (np.float32(0.5), 0.5), (np.int64(7), 7), (np.bool_(True), True), (np.str_("s"), "s"),
    (np.array(3), 3), (np.array([1, 2]), "[1 2]"), (np.eye(2), str(np.eye(2))),
    (np.dtype("int8"), "int8"), (torch.tensor(2.5), 2.5), (torch.tensor([1, 2]), "tensor([1, 2])"),
    (torch.bfloat16, "torch.bfloat16"), (torch.device("cpu"), "cpu"), (Path("a/b"), "a/b"),
    (Colour.RED, "RED"), (datetime(2026, 3, 5), "2026-03-05 00:00:00"),
    (torch.nn.Linear, "torch.nn.modules.linear.Linear"), (math.sqrt, "math.sqrt"),
]  # fmt: skip


@pytest.fixture(scope="module")
def hyperparameters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    logger = NeptuneLogger(folder)
    logger.log_hyperparams({str(i): value for i, (value, _) in enumerate(HYPERPARAMETERS)})
    logger.finalize("success")
    return read_offline(folder)[1]


@pytest.mark.parametrize("i", range(len(HYPERPARAMETERS)))
def test_a_hyperparameter_of_this_type_survives(hyperparameters: dict[str, Any], i: int) -> None:
    expected = HYPERPARAMETERS[i][1]
    found = hyperparameters[f"training/hyperparams/{i}"]
    assert (found, type(found)) == (expected, type(expected))


def test_groups_of_hyperparameters(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path, prefix="")
    logger.log_hyperparams(argparse.Namespace(model={"size": Size(), 1: {"x": Size}}, lr=0.1))
    # Other types
    logger.log_hyperparams(
        {"lr": "auto", "model": "none", "": 1, "lr/decay": 2, "deep": {"a/b": 3}}
    )
    found = {
        k.removeprefix("hyperparams/"): v
        for k, v in read_offline(tmp_path)[1].items()
        if "hyperparams" in k
    }
    assert found == {
        "model/size/width": 3, "model/size/dtype": "torch.float32", "model/1/x": f"{__name__}.Size",
        "lr": "auto", "model": "none", "''": 1, "lr/decay": 2, "deep/a/b": 3,
    }  # fmt: skip


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEY = st.text("abc", min_size=1, max_size=3)
TREE = st.dictionaries(
    KEY, st.recursive(LEAF | st.lists(LEAF), lambda t: st.dictionaries(KEY, t, max_size=4))
)


@FEW
@given(TREE)
def test_any_tree_of_hyperparameters_comes_back(
    tmp_path_factory: Any, tree: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    logger = NeptuneLogger(folder)
    logger.log_hyperparams(tree)
    logger.finalize("success")
    attributes = read_offline(folder)[1]
    leaves: dict[str, Any] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{path}/{key}", inner)
        else:
            leaves[path] = value

    walk("training/hyperparams", tree)
    for path, value in leaves.items() if tree else ():
        found = attributes[path]
        if isinstance(value, list):
            names = {"nan": math.nan, "inf": math.inf}
            assert same(eval(found, names), value)  # Python's own notation
        elif isinstance(value, float):
            assert same([(None, float(found))], [(None, value)])
        elif isinstance(value, str):
            assert found == value
        else:  # None, booleans, integers of any size: text where Neptune has no exact number
            assert (ast.literal_eval(found) if isinstance(found, str) else found) == value
    assert len([path for path in attributes if path.startswith("training/hyperparams")]) == len(
        leaves
    ) * bool(tree)


def test_a_resumed_run_is_read_as_one(tmp_path: Path) -> None:
    # Killed after step 6, resumed from a checkpoint of step 4
    for first, last, offset in (
        (1, 6, 0.0),
        (5, 9, 100.0),
    ):
        logger = NeptuneLogger(tmp_path)
        for step in range(first, last + 1):
            logger.log_metrics({"train_loss": step + offset}, step=step)
        logger.log_hyperparams({"lr": offset})
    series, attributes = read_offline(tmp_path)
    assert series["training/train_loss"] == [
        (step, step + 100.0 * (step >= 5)) for step in range(1, 10)
    ]
    assert attributes["training/hyperparams/lr"] == 100.0
    assert len(offline_containers(tmp_path)) == 2


def test_logging_goes_on_after_the_end(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path)
    logger.finalize("success")
    assert not list(tmp_path.iterdir())  # nothing was logged
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finalize("failed")
    assert read_offline(tmp_path)[1]["sys/failed"] is True
    logger.experiment["eval/score"] = 0.5
    series, attributes = read_offline(tmp_path)
    # The client keeps it back
    assert series == {"training/a": [(1, 1.0)]} and "eval/score" not in attributes
    logger.finalize("success")
    assert read_offline(tmp_path)[1]["eval/score"] == 0.5


@pytest.fixture(scope="module")
def log_of_forty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("run")
    logger = NeptuneLogger(folder)
    for step in range(40):
        logger.log_metrics({"train_loss": step / 7}, step=step)
    logger.finalize("success")
    return (offline_containers(folder)[0] / "data-1.log").read_bytes()


@FEW
@given(data=st.data())
def test_a_cut_loses_no_whole_line(
    tmp_path_factory: Any, log_of_forty: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(log_of_forty)))
    container = tmp_path_factory.mktemp("run") / ".neptune" / "offline" / "run__1"
    container.mkdir(parents=True)
    (container / "data-1.log").write_bytes(log_of_forty[:cut])
    whole = log_of_forty[:cut].count(b"LogFloats") - (
        b"LogFloats" in log_of_forty[:cut].rpartition(b"\n")[2]
    )
    points = read_offline(container.parents[2])[0].get("training/train_loss", [])
    # The last line may be whole but for its end of line.
    assert points in [[(step, step / 7) for step in range(n)] for n in (whole, whole + 1)]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda v: (st.lists(v, max_size=3) | st.dictionaries(
                                   st.sampled_from(["value", "values", "step", "type"]), v
                               )))  # fmt: skip
TYPES = [
    "AssignInt",
    "AssignDatetime",
    "AddStrings",
    "RemoveStrings",
    "LogFloats",
    "LogStrings",
    "ClearFloatLog",
    "X",
]
OPERATION = st.fixed_dictionaries(
    {
        "type": st.sampled_from(TYPES),
        "path": st.just(["a", "not_finite"]) | st.lists(st.text(max_size=2)) | JSON,
    },
    optional={
        "value": JSON,
        "values": JSON | st.lists(st.fixed_dictionaries({"value": JSON, "step": JSON})),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(OPERATION | JSON, JSON, JSON) | JSON, max_size=5))
def test_hostile_lines_are_left_out(tmp_path_factory: Any, entries: list[Any]) -> None:
    container = tmp_path_factory.mktemp("run") / "offline" / "run__1"
    container.mkdir(parents=True)
    good = {
        "type": "LogFloats",
        "path": ["the good one"],
        "values": [{"value": 1.5, "step": 2.0, "ts": 0}],
    }
    lines = [
        json.dumps(
            {"obj": e[0], "version": e[1], "at": e[2]} if isinstance(e, tuple) else e,
            allow_nan=True,
        )
        for e in [*entries, (good, 10**400, 1.0)]
    ]
    (container / "data-1.log").write_text("\n".join(lines) + "\n[[[[\n" + "[" * 100_000)
    assert read_offline(container.parents[1])[0]["the good one"] == [(2, 1.5)]


def test_files_are_read_in_order_and_repeated_lines_once(tmp_path: Path) -> None:
    def line(version: int, value: float, step: float | None) -> str:
        points = [{"value": value, "step": step, "ts": 0.0}]
        operation = {"type": "LogFloats", "path": ["a"], "values": points}
        return json.dumps({"obj": operation, "version": version, "at": 5.0})

    container = tmp_path / "offline" / "run__1"
    container.mkdir(parents=True)
    (container / "data-1.log").write_text("".join(f"{line(v, v, None)}\n" for v in (1, 2, 1, 2, 3)))
    (container / "data-10.log").write_text(line(10, 10, 0.5))
    (container / "data-4.log").write_text(line(4, 4, 0.5) + "\n")
    assert read_offline(tmp_path)[0] == {"a": [(None, 1.0), (None, 2.0), (None, 3.0), (0.5, 10.0)]}


def test_what_the_client_takes_back_is_gone(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path, tags=["a", "b"])
    run = logger.experiment
    run["series"].append(1.0)
    run["series"].clear()
    run["series"].append(2.0)
    run["gone"] = 1
    del run["gone"]
    run["when"] = datetime(2026, 3, 5, 12, tzinfo=UTC)
    run["words"].append("text")
    run["sys/tags"].remove("a")
    logger.finalize("success")
    series, attributes = read_offline(tmp_path)
    assert series == {"series": [(None, 2.0)]} and "gone" not in attributes
    assert attributes["when"] == datetime(2026, 3, 5, 12, tzinfo=UTC) and attributes[
        "sys/tags"
    ] == ["b"]


def test_copies_write_containers_of_their_own(tmp_path: Path) -> None:
    logger = NeptuneLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    for step, other in enumerate(
        (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))), start=2
    ):
        other.log_metrics({"a": float(step)}, step=step)
    logger.log_metrics({"a": 4.0}, step=4)
    assert read_offline(tmp_path)[0]["training/a"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert len(offline_containers(tmp_path)) == 3


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = NeptuneLogger(tmp_path / "run")
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_hyperparams({"a": 1})
    logger.experiment["a"] = 1
    logger.finalize("success")
    assert not (tmp_path / "run").exists()


def test_a_plain_trainer_trains_tests_and_keeps_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Model(BoringModel):
        def __init__(self, width: int = 3, path: Path = Path("x")):
            super().__init__()
            self.save_hyperparameters()

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("loss", float("nan") if batch_idx == 2 else float(batch_idx))
            return super().training_step(batch, batch_idx)

        def test_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.log("test_loss", 0.25)

    trainer = L.Trainer(
        logger=NeptuneLogger(tmp_path), max_steps=5, log_every_n_steps=1, accelerator="cpu",
        limit_test_batches=1, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Model())
    trainer.test(Model(), verbose=False)
    series, attributes = read_offline(tmp_path)
    values: list[tuple[float | None, float]] = [
        (step, math.nan if step == 2 else float(step)) for step in range(5)
    ]
    assert same(series["training/loss"], values) and series["training/test_loss"][0][1] == 0.25
    assert (
        attributes["training/hyperparams/width"] == 3
        and attributes["training/hyperparams/path"] == "x"
    )
    assert attributes["training/status"] == "success"
    # Lightning's own checkpoints go beside the data
    assert list((tmp_path / "checkpoints").glob("*.ckpt"))
    said = "".join(capfd.readouterr())
    assert "neptune" not in said.lower(), said


def test_a_client_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"client=no_such\.client: no such package; pip install no_such"
    ):
        NeptuneLogger(tmp_path, client="no_such.client")
    monkeypatch.setitem(sys.modules, "neptune", None)
    with pytest.raises(UserError, match=r"pip install 'lit_llm\[neptune\]'"):
        NeptuneLogger(tmp_path)


CLIENT = """
import os
opened = []
class Field:
    def append(self, value, step=None): pass
class Run(dict):
    def __missing__(self, key): return Field()
    def wait(self): pass
    def stop(self): self["stopped"] = True
def init_run(**options):
    opened.append({**options, "folder": os.environ["NEPTUNE_DATA_DIRECTORY"]})
    return Run()
"""


def test_another_client_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "other_neptune.py").write_text(CLIENT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NEPTUNE_DATA_DIRECTORY", "elsewhere")
    monkeypatch.chdir(tmp_path)
    for save_dir in ("a", "a", "b", None):
        logger = NeptuneLogger(save_dir, mode="async", client="package.other_neptune")
        logger.log_metrics({"x": 1.0}, step=1)
        run = logger.experiment
        logger.finalize("success")
        assert run["stopped"] and run["training/status"] == "success"
    opened = sys.modules["package.other_neptune"].opened
    folders = ("a/.neptune", "a/.neptune", "b/.neptune", "elsewhere")
    assert [options["folder"] for options in opened] == [
        str(tmp_path / folder) for folder in folders
    ]
    same_run, resumed, another, _ = (o["custom_run_id"] for o in opened)
    assert same_run == resumed != another and len(same_run) <= 36
    assert opened[0]["mode"] == "async" and not any(
        v for k, v in opened[0].items() if k.startswith("capture_")
    )


def test_fit_and_resume_with_csv_beside_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loggers = [{"class_path": f"lit_llm.training.{name}", "init_args": {"save_dir": "run"}}
               for name in ("loggers.CSVLogger", "neptune.logger.NeptuneLogger")]  # fmt: skip
    config = {
        "model": {
            "class_path": "lit_llm.PretrainModule",
            "init_args": {"transformer": {"hidden_size": 32, "num_heads": 2}},
        },
        "data": {
            "class_path": "lit_llm.PretrainDataModule",
            "init_args": {"corpus": str(corpus), "seq_len": 32, "micro_batch_size": 2,
                          "tokens": 640},
        },
        "trainer": {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 1, "logger": loggers,
                    "log_every_n_steps": 1, "default_root_dir": "run"},
    }  # fmt: skip
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "mine.yaml"]) == 0
    assert (
        main(["fit", "--config", "mine.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4"])
        == 0
    )
    series, attributes = read_offline(Path("run"))
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows][-1] == "4"
    table = {
        f"training/{column}": [
            (int(row["step"]), float(row[column])) for row in rows if row[column]
        ]
        for column in rows[0]
        if column != "step" and any(row[column] for row in rows)
    }
    series.pop("training/epoch", None)
    assert same(sorted(series.items()), sorted(table.items()))
    assert attributes["training/hyperparams/transformer/hidden_size"] == 32
    assert len(offline_containers(Path("run"))) == 2
