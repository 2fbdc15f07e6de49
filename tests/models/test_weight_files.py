"""Which tensors of a directory are taken, where config.json and the files say different things: as
in transformers."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.lora import LoRAConfig, apply_lora
from lit_llm.models.transformer import Transformer

IDS = torch.randint(0, 61, (1, 12), generator=torch.Generator().manual_seed(1))
FAMILIES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True, pad_token_id=0
    ),
    "gpt_neox": transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True, pad_token_id=0
    ),
    "gpt2": transformers.GPT2Config(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4),
}  # fmt: skip
EMBEDDING = {
    "llama": "model.embed_tokens.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
    "gpt2": "transformer.wte.weight",
}
HEAD = {"llama": "lm_head.weight", "gpt_neox": "embed_out.weight", "gpt2": "lm_head.weight"}


def saved(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(folder)
    return folder


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    file = folder / "model.safetensors"
    held = {**safetensors.torch.load_file(file), **tensors}
    safetensors.torch.save_file(
        {k: v for k, v in held.items() if v is not None}, file, {"format": "pt"}
    )


def same_as_transformers(folder: Path) -> Transformer:
    model = Transformer.from_pretrained(folder).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_that_differs_is_kept_and_told(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path / "model", family)
    change(folder, {HEAD[family]: torch.randn(61, 32, generator=torch.Generator().manual_seed(2))})
    model = same_as_transformers(folder)
    assert (
        not model.config.tie_embeddings
        and not TransformerConfig.from_pretrained(folder).tie_embeddings
    )
    assert [r.getMessage() for r in caplog.records if "they are not tied" in r.getMessage()] == [
        f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but the "
        f"weights hold two that "
        "differ: they are not tied"
    ]  # fmt: skip
    model.save_pretrained(tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    same_as_transformers(tmp_path / "again")


def test_a_tied_head_that_is_the_same_is_nothing_to_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path / "model", "gpt_neox")
    embedding = safetensors.torch.load_file(folder / "model.safetensors")[EMBEDDING["gpt_neox"]]
    change(folder, {HEAD["gpt_neox"]: embedding.clone()})
    with caplog.at_level(logging.WARNING, "lit_llm"):
        model = same_as_transformers(folder)
    assert model.head.weight is model.embed.weight and not caplog.records


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_model_of_which_the_file_holds_the_head_alone(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path / "model", family)
    embedding = safetensors.torch.load_file(folder / "model.safetensors")[EMBEDDING[family]]
    change(folder, {EMBEDDING[family]: None, HEAD[family]: embedding})
    model = same_as_transformers(folder)
    assert model.head.weight is model.embed.weight


def test_a_tied_head_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    change(folder, {"lm_head.weight": torch.zeros(64, 32)})
    with pytest.raises(
        UserError, match=r"tensor lm_head.weight has shape \(64, 32\), config.json says \(61, 32\)"
    ):
        Transformer.from_pretrained(folder)


def stale_shards(folder: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(FAMILIES["llama"]).save_pretrained(
        folder / "other", max_shard_size="20KB"
    )
    for file in (folder / "other").glob("model*"):
        file.rename(folder / file.name)


def stale_index(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00009.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_beside(folder: Path) -> None:
    torch.save({"lm_head.weight": torch.zeros(61, 32)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("beside", "unused"),
    [(stale_shards, "model-00001-of-000"), (stale_index, "model.safetensors.index.json"),
     (pickle_beside, "pytorch_model.bin")],
)  # fmt: skip
def test_one_file_goes_before_shards_and_pickles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: Callable[[Path], None], unused: str
) -> None:
    folder = saved(tmp_path / "model")
    beside(folder)
    same_as_transformers(folder)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("lit_llm")]
    assert len(said) == 1 and unused in said[0]
    assert "read from model.safetensors, as transformers does; not used: " in said[0]


def test_shards_of_another_save_beside_those_of_the_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES["llama"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    safetensors.torch.save_file(
        {"x": torch.zeros(1)}, tmp_path / "model-00001-of-00099.safetensors"
    )
    same_as_transformers(tmp_path)
    assert any(
        "not used: model-00001-of-00099.safetensors" in r.getMessage() for r in caplog.records
    )


@pytest.mark.parametrize("first_sharded", [False, True])
def test_a_save_leaves_nothing_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_sharded: bool
) -> None:
    config = TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, family="llama")
    models = [Transformer(config) for _ in range(2)]
    for model, sharded in zip(models, [first_sharded, not first_sharded], strict=True):
        limit = 20_000 if sharded else 10**9
        monkeypatch.setattr("lit_llm.models.hub.huggingface.MAX_SHARD_BYTES", limit)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, models[1].eval()(IDS), atol=1e-4, rtol=1e-4)
    assert (tmp_path / "model.safetensors").exists() is first_sharded


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_others_may_read_what_the_umask_lets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int
) -> None:
    """A directory in one file, one in shards, an adapter: every file."""
    monkeypatch.setattr("lit_llm.models.hub.huggingface.MAX_SHARD_BYTES", 10_000)
    model = Transformer(TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=2))
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "shards")
        monkeypatch.setattr("lit_llm.models.hub.huggingface.MAX_SHARD_BYTES", 10**9)
        model.save_pretrained(tmp_path / "one")
        apply_lora(model, LoRAConfig(rank=2))
        save_adapter(model, tmp_path / "adapter")
    finally:
        os.umask(before)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum("safetensors" in file.name for file in written) >= 4
    assert {file.name: file.stat().st_mode & 0o777 for file in written} == {
        file.name: mode for file in written
    }
