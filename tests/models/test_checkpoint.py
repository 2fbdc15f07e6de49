"""load_model: every kind of path, and one line for each that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.io.atomic import part_of
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import choose_device, load_model, open_model
from lit_llm.models.lora import LoRAConfig, apply_lora
from lit_llm.models.parallel.sharded_checkpoint import MARK, Divided, Shard, commit, write_share
from lit_llm.models.transformer import Transformer
from lit_llm.terminal.inspect import inspect_checkpoint


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of one step."""
    folder = tmp_path_factory.mktemp("runs")
    config = {
        "model": {
            "class_path": "lit_llm.PretrainModule",
            "init_args": {"transformer": {"hidden_size": 32, "num_heads": 2,
                                          "tie_embeddings": True}},
        },
        "data": {
            "class_path": "lit_llm.PretrainDataModule",
            "init_args": {"seq_len": 32, "micro_batch_size": 2, "tokens": 64,
                          "corpus": str(corpus)},
        },
        "trainer": {
            "accelerator": "cpu", "precision": "32-true", "limit_val_batches": 1,
            "enable_progress_bar": False, "default_root_dir": str(folder / "one"),
        },
        "report": {},
    }  # fmt: skip
    file = folder / "one.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(file)]) == 0
    return folder / "one"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run folder to spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def logits(model: Transformer) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(40)[None])


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "step-00000001.ckpt"


def test_final_run_folder_and_training_checkpoint_are_the_same_model(run: Path) -> None:
    model, tokenizer = load_model(run / "final")
    assert not model.training
    for path in (run, str(run), checkpoint_of(run)):
        other, its_tokenizer = load_model(path)
        assert torch.equal(logits(other), logits(model))
        assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
        assert its_tokenizer.chat_template == tokenizer.chat_template
        assert other.head.weight is other.embed.weight and not other.training


def test_a_checkpoint_in_parts_is_the_same_model(copy: Path) -> None:
    file = checkpoint_of(copy)
    expected, facts = load_model(file)[0], inspect_checkpoint(file)
    rest = torch.load(file, weights_only=True)
    shares: list[dict[str, Shard]] = [{}, {}]
    for name, tensor in rest["state_dict"].items():
        rows = 0
        for share, strip in zip(shares, tensor.chunk(2), strict=True):
            share[name] = Shard(strip, (rows, *[0] * (tensor.ndim - 1)), tuple(tensor.shape))
            rows += len(strip)
        rest["state_dict"][name] = MARK + name
    files = {}
    for rank, share in enumerate(shares):
        files |= write_share(Divided(share, rest if rank == 0 else None), part_of(file), rank)
    commit(part_of(file), file, files)
    assert file.is_dir()
    model, _ = load_model(file)
    assert torch.equal(logits(model), logits(expected)) and model.head.weight is model.embed.weight
    assert inspect_checkpoint(file) == facts
    (file / "part-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"step-00000001\.ckpt: not a whole checkpoint.*part-00001"):
        load_model(file)


def test_dtype_and_device(run: Path) -> None:
    for path in (run, checkpoint_of(run)):
        model, _ = load_model(path, dtype=torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model, _ = open_model(run, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "tpu", "gpu"):
        with pytest.raises(UserError, match=f"--device {name}: not available"):
            choose_device(name)


def test_weights_do_not_depend_on_the_file_any_more(copy: Path) -> None:
    model, _ = load_model(checkpoint_of(copy))
    before = logits(model)
    file = checkpoint_of(copy)
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(logits(model), before)


def test_tokenizer_of_an_unfinished_run(copy: Path) -> None:
    file = checkpoint_of(copy)
    expected = load_model(file)[1].fingerprint()
    shutil.rmtree(copy / "final")
    assert load_model(file)[1].fingerprint() == expected  # the run writes it before the first step
    with pytest.raises(
        UserError, match=r"no final/ yet; give one of its checkpoints: .*step-00000001\.ckpt"
    ):
        load_model(copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match=r"no tokenizer .* copy its tokenizer.json") as raised:
        load_model(file)
    assert str(copy / "tokenizer") in str(raised.value)


def test_adapter_is_folded_in(run: Path, tmp_path: Path) -> None:
    base, _ = load_model(run)
    before = logits(base)
    apply_lora(base, LoRAConfig(rank=2))
    for name, p in base.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(p, std=0.1)
    adapted = logits(base.eval())
    assert not torch.allclose(adapted, before, atol=1e-3)
    save_adapter(base, tmp_path / "adapter")
    merged, _ = load_model(run, tmp_path / "adapter")
    torch.testing.assert_close(logits(merged), adapted, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())
    with pytest.raises(UserError, match="is an adapter; give the model"):
        load_model(tmp_path / "adapter")
    with pytest.raises(UserError, match="absent"):
        load_model(run, tmp_path / "absent")


def resave(file: Path, **changes: object) -> None:
    checkpoint = torch.load(file, weights_only=True)
    torch.save({**checkpoint, **changes}, file)


def test_broken_and_foreign_checkpoints(copy: Path) -> None:
    file = checkpoint_of(copy)
    settings = torch.load(file, weights_only=True)["hyper_parameters"]
    resave(
        file,
        hyper_parameters={**settings, "transformer": {**settings["transformer"], "num_layers": 5}},
    )
    with pytest.raises(UserError, match="weights are not those of a Transformer"):
        load_model(file)
    resave(
        file,
        hyper_parameters={
            **settings,
            "transformer": {**settings["transformer"], "vocab_size": 300},
        },
    )
    with pytest.raises(UserError, match=r"weights are not|another model's"):
        load_model(file)
    resave(file, hyper_parameters={})
    with pytest.raises(UserError, match="does not say which transformer"):
        load_model(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole training checkpoint"):
        load_model(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is empty, not a training checkpoint"):
        load_model(file)


def test_paths_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such file or folder; a checkpoint is"):
        load_model(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no config.json and no final/"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is not a checkpoint; give"):
        load_model(tmp_path / "model.safetensors")


def test_an_adapters_own_tokenizer_keeps_the_tokens_that_end_the_bases_texts(
    run: Path, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(run / "final", base)
    settings = {"eos_token_id": [0, 3, 70], "temperature": 0.5}
    (base / "generation_config.json").write_text(json.dumps(settings))
    model, tokenizer = load_model(base)
    apply_lora(model, LoRAConfig(rank=2))
    save_adapter(model, adapter)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    own = load_model(base, adapter)[1]
    assert own.stop_ids == tokenizer.stop_ids == [0, 3, 70]
    assert own.generation_config["temperature"] == 0.5
