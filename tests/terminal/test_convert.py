"""lit_llm import and export: a whole directory or file, or none."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.lora import LoRAConfig, apply_lora, is_lora
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.terminal.convert import export_main, import_main, write_directory


def test_directory_in_directory_out(
    chat_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
    assert (
        f"{weights:,} parameters, llama, float32, with a chat template" in capsys.readouterr().out
    )
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["a"]
        and not (tmp_path / "a" / "leftover").exists()
    )

    (tmp_path / "b").mkdir()  # empty is as good as absent
    monkeypatch.chdir(tmp_path / "b")
    import_main([str(chat_model), ".", "--dtype", "bfloat16"])
    assert {p.dtype for p in load_model(tmp_path / "b")[0].parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert ", bfloat16," in capsys.readouterr().out


def test_refusals_leave_nothing(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_export_to_both_formats(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(chat_model)
    ids = torch.arange(50)[None]
    assert (
        main(
            [
                "export",
                str(chat_model),
                str(tmp_path / "hf"),
                "--format",
                "hf",
                "--dtype",
                "bfloat16",
            ]
        )
        == 0
    )
    assert ", llama, bfloat16, with a chat template" in capsys.readouterr().out
    assert load_model(tmp_path / "hf")[0].embed.weight.dtype == torch.bfloat16
    for quantization, tolerance in (("f32", 0.0), ("q8_0", 1.0)):
        file = tmp_path / f"{quantization}.gguf"
        assert (
            main(
                [
                    "export",
                    str(chat_model),
                    str(file),
                    "--format",
                    "gguf",
                    "--quantization",
                    quantization,
                ]
            )
            == 0
        )
        assert f", llama, {quantization}, with a chat template" in capsys.readouterr().out
        copy, its_tokenizer = load_model(file)
        torch.testing.assert_close(copy(ids), model(ids), atol=tolerance + 1e-5, rtol=0)
        assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
    export_main([str(chat_model), str(tmp_path / "plain.gguf"), "--format", "gguf"])
    assert GGUFFile(tmp_path / "plain.gguf").tensors["blk.0.attn_q.weight"].kind == "F16"


def test_export_to_gguf_ends_turns_and_says_what_differs(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """generation_config.json says nothing of <|im_end|>; the chat template does."""
    folder = tmp_path / "nfc"
    shutil.copytree(chat_model, folder)
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**spec, "normalizer": {"type": "NFC"}}))
    export_main([str(folder), str(tmp_path / "m.gguf"), "--format", "gguf"])
    tokenizer = Tokenizer.from_pretrained(chat_model)
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert metadata["tokenizer.ggml.eot_token_id"] == tokenizer.control_tokens["<|im_end|>"]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and notes[0].startswith("note: llama.cpp does not compose characters")


def test_export_folds_an_adapter_in(chat_model: Path, tmp_path: Path) -> None:
    model, _ = load_model(chat_model)
    apply_lora(model, LoRAConfig(rank=2))
    for name, p in model.named_parameters():
        if is_lora(name):
            torch.nn.init.normal_(p, std=0.1)
    save_adapter(model, tmp_path / "adapter")
    ids = torch.arange(50)[None]
    expected = model.eval()(ids)
    for name in ("m.gguf", "m"):
        kind = (
            ["--format", "gguf", "--quantization", "f32"]
            if name == "m.gguf"
            else ["--format", "hf"]
        )
        export_main(
            [str(chat_model), str(tmp_path / name), *kind, "--adapter", str(tmp_path / "adapter")]
        )
        torch.testing.assert_close(load_model(tmp_path / name)[0](ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_weights_that_float16_cannot_hold_are_refused(
    chat_model: Path, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(chat_model)
    model.get_parameter("layers.1.mlp.down_proj.weight").data[3, 4] = value
    write_directory(model, tokenizer, tmp_path / "base")
    gguf, hf = ("m.gguf", "--format", "gguf"), ("m", "--format", "hf")
    for (out, *options), said in (
        (gguf, "blk.1.ffn_down.weight has values beyond the 65,504 of F16, or not finite"),
        ((*hf, "--dtype", "float16"), "layers.1.mlp.down_proj.weight has values beyond the 65,504"),
    ):
        assert main(["export", str(tmp_path / "base"), str(tmp_path / out), *options]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    for out, *options in ((*gguf, "--quantization", "bf16"), (*hf, "--dtype", "bfloat16")):
        assert main(["export", str(tmp_path / "base"), str(tmp_path / out), *options]) == 0


def test_export_refusals(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used.gguf").touch()
    for out, options, said in (
        ("used.gguf", ["--format", "gguf"], "exists already"),
        ("m.bin", ["--format", "gguf"], "ends in .gguf"),
        ("no/m.gguf", ["--format", "gguf"], "no such folder"),
        ("m.gguf", ["--format", "gguf", "--dtype", "float16"], "--dtype goes with --format hf"),
        (
            "m",
            ["--format", "hf", "--quantization", "f16"],
            "--quantization goes with --format gguf",
        ),
        ("m", [], "--format"),
        ("m", ["--format", "onnx"], "invalid choice"),
    ):
        assert main(["export", str(chat_model), str(tmp_path / out), *options]) == 2
        assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["used.gguf"]
