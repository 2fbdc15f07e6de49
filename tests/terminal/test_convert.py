"""lit_llm import: a whole directory or none."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.checkpoint import load_model
from lit_llm.models.transformer import Transformer
from lit_llm.terminal.convert import import_main


def test_directory_in_directory_out(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "leftover").touch()
    import_main([str(chat_model), str(tmp_path / "a")])
    (model, tokenizer), (copy, its_tokenizer) = load_model(chat_model), load_model(tmp_path / "a")
    ids = torch.arange(50)[None]
    assert torch.equal(copy(ids), model(ids))
    assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
    assert its_tokenizer.chat_template == tokenizer.chat_template
    weights = sum(p.numel() for p in model.parameters())
    assert f"{weights:,} parameters, llama, float32, with a chat template" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"] and not (tmp_path / "a" / "leftover").exists()

    (tmp_path / "b").mkdir()  # empty is as good as absent
    monkeypatch.chdir(tmp_path / "b")
    import_main([str(chat_model), ".", "--dtype", "bfloat16"])
    assert {p.dtype for p in load_model(tmp_path / "b")[0].parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert ", bfloat16," in capsys.readouterr().out


def test_refusals_leave_nothing(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").touch()
    for out in (used, used / "mine"):
        with pytest.raises(UserError, match="is not empty"):
            import_main([str(chat_model), str(out)])
    with pytest.raises(UserError, match="absent: no such file"):
        import_main([str(tmp_path / "absent"), str(tmp_path / "out")])
    with pytest.raises(UserError, match="could not be written"):
        import_main([str(chat_model), str(used / "mine" / "out")])
    with pytest.raises(UserError, match="invalid choice: 'int8'"):
        import_main([str(chat_model), str(tmp_path / "out"), "--dtype", "int8"])

    def full(self: Transformer, path: Path, dtype: Any = None) -> None:
        path.mkdir()
        (path / "config.json").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Transformer, "save_pretrained", full)
    with pytest.raises(UserError, match="No space left"):
        import_main([str(chat_model), str(tmp_path / "out")])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine", "used"]
