"""Numbers outside their range are refused before anything is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lit_llm import InstructionDataModule, PretrainDataModule, PretrainModule
from lit_llm.errors import UserError
from lit_llm.settings.ranges import Range, check_ranges, positive


def test_a_range_holds_finite_numbers_alone() -> None:
    assert 1 in Range(1, 2) and 2.0 in Range(1, 2) and 0 not in positive(1) and 1e-9 in positive(1)
    for value in (math.nan, math.inf, -math.inf):
        assert value not in Range(-1e300, 1e300)
    with pytest.raises(UserError, match=r"data\.x=1,500,000: must be above 0 to 1,000$"):
        check_ranges(
            {"x": 1_500_000, "y": None, "z": "auto"}, dict.fromkeys("xyz", positive(1e3)), "data."
        )


@pytest.mark.parametrize(
    "setting",
    [
        {"learning_rate": -1.0}, {"learning_rate": 0.0}, {"learning_rate": math.nan},
        {"learning_rate": math.inf}, {"learning_rate": 1e30}, {"grad_clip": -1.0},
        {"weight_decay": -3.0}, {"final_lr": -1.0}, {"warmup": 2.0},
        {"activation_checkpointing": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_the_modules_numbers(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"model\.{next(iter(setting))}=.*: must be "):
        PretrainModule(**setting)


@pytest.mark.parametrize(
    "setting",
    [
        {"tokens": math.nan}, {"tokens": 1e300}, {"tokens": -1}, {"num_workers": -1}, {"seed": -1},
        {"eval_batch_size": 0}, {"eval_batch_size": -1}, {"validate_every": -1},
        {"micro_batch_size": 10**12}, {"seq_len": 0},
    ],
    ids=str,
)  # fmt: skip
def test_the_data_modules_numbers(setting: dict[str, Any]) -> None:
    name = next(iter(setting))
    with pytest.raises(UserError, match=rf"data\.{name}=.*: must be "):
        PretrainDataModule(**setting)
    if name != "tokens":
        with pytest.raises(UserError, match=rf"data\.{name}=.*: must be "):
            InstructionDataModule(**setting)


def test_an_unset_variable_is_no_source() -> None:
    with pytest.raises(UserError, match=r"data\.sources is empty text"):
        PretrainDataModule(sources="")


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    module = PretrainModule(learning_rate=np.float64(1e-3))
    assert type(module.hparams["learning_rate"]) is float
