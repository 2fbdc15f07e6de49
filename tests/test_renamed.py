"""Former names of settings work for one release, with one line that gives the new name."""

from __future__ import annotations

import pytest
import yaml

from lit_llm import ForgettingCheck, FSDP2Strategy, PretrainModule, RetentionCheck
from lit_llm.cli import main


def test_recompute() -> None:
    with pytest.warns(
        UserWarning, match="model.recompute is called model.activation_checkpointing"
    ):
        old = PretrainModule("nano-5m", recompute=0.5)
    new = PretrainModule("nano-5m", activation_checkpointing=0.5)
    assert dict(old.hparams) == dict(new.hparams)
    assert old.hparams["activation_checkpointing"] == 0.5


def test_recompute_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "pretrain/quickstart", "--model.recompute", "0.5", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert settings["recompute"] == 0.5


def test_checkpoints_in_parts() -> None:
    with pytest.warns(UserWarning, match="checkpoint=parts is called sharded"):
        old: dict = vars(FSDP2Strategy(checkpoint="parts"))
    assert old["_sharded"] and vars(FSDP2Strategy())["_sharded"]
    assert not vars(FSDP2Strategy(checkpoint="whole"))["_sharded"]


def test_retention_check() -> None:
    with pytest.warns(UserWarning, match="RetentionCheck is called ForgettingCheck now"):
        old = RetentionCheck(count=3, max_new_tokens=4)
    assert isinstance(old, ForgettingCheck) and (old.count, old.max_new_tokens) == (3, 4)
