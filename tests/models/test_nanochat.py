"""nanochat's own checkpoints: read as nanochat writes them, computed as its own code computes.

The comparison needs a checkout of nanochat beside this one, as benchmarks/quality_per_second.py
does, or its path in NANOCHAT.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.cli import main
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

CHECKOUT = Path(os.environ.get("NANOCHAT", Path(__file__).parents[3] / "nanochat"))
SHAPE = {"sequence_len": 256, "vocab_size": 265, "n_layer": 4, "n_head": 2, "n_kv_head": 1,
         "n_embd": 48, "window_pattern": "SSL"}  # fmt: skip
SPECIAL = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>",
           "<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>",
           "<|output_end|>"]  # fmt: skip
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+"
)
# Trains nanochat's model on random ids for a few steps of SGD, so that nothing is zero, and writes
# it as nanochat/checkpoint_manager.py does.
CHILD = """
import dataclasses, json, sys
import torch
sys.path.insert(0, sys.argv[1])
from nanochat.gpt import GPT, GPTConfig
config = GPTConfig(**json.loads(sys.argv[2]))
torch.manual_seed(0)
with torch.device("meta"):
    model = GPT(config)
model.to_empty(device="cpu")
model.init_weights()
ids = torch.randint(0, config.vocab_size, (2, 256))
for _ in range(50):
    model(ids[:, :-1], ids[:, 1:].contiguous()).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_((p.grad + 0.01 * torch.randn_like(p)).to(p.dtype), alpha=-0.5)
    model.zero_grad()
out = sys.argv[3]
torch.save(model.state_dict(), out + "/model_000050.pt")
meta = {"step": 50, "model_config": dataclasses.asdict(config)}
open(out + "/meta_000050.json", "w").write(json.dumps(meta))
with torch.no_grad():
    torch.save({"ids": ids, "logits": model(ids)}, out + "/expected.pt")
"""


def nanochats(fields: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors with the names and shapes of nanochat's."""
    width, layers = fields["n_embd"], fields["n_layer"]
    kv, rows = width // fields["n_head"] * fields["n_kv_head"], -(-fields["vocab_size"] // 64) * 64
    state = {
        "transformer.wte.weight": torch.randn(rows, width, dtype=torch.bfloat16),
        "lm_head.weight": torch.randn(rows, width),
        "resid_lambdas": torch.randn(layers), "x0_lambdas": torch.randn(layers),
        "smear_gate.weight": torch.randn(1, 24), "smear_lambda": torch.randn(1),
        "backout_lambda": torch.randn(1),
    }  # fmt: skip
    for i in range(layers):
        block = f"transformer.h.{i}."
        for name, size in (("c_q", width), ("c_k", kv), ("c_v", kv), ("c_proj", width)):
            state[f"{block}attn.{name}.weight"] = torch.randn(size, width)
        state[f"{block}mlp.c_fc.weight"] = torch.randn(4 * width, width)
        state[f"{block}mlp.c_proj.weight"] = torch.randn(width, 4 * width)
        if i % 2 == (layers - 1) % 2:
            state[f"{block}attn.ve_gate.weight"] = torch.randn(fields["n_kv_head"], 12)
            state[f"value_embeds.{i}.weight"] = torch.randn(rows, kv, dtype=torch.bfloat16)
    return state


class Encoding:
    """Pickled as tiktoken's class is: by the name of its class, with a dict as its state."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.state = {
            "name": "rustbpe", "pat_str": PATTERN, "mergeable_ranks": ranks,
            "special_tokens": {name: len(ranks) + i for i, name in enumerate(SPECIAL)},
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def write_tokenizer(file: Path, monkeypatch: pytest.MonkeyPatch, *merged: bytes) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {t: 256 + i for i, t in enumerate(merged)}
    package, module = type(sys)("tiktoken"), type(sys)("tiktoken.core")
    monkeypatch.setitem(sys.modules, "tiktoken", package)
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    monkeypatch.setattr(Encoding, "__module__", "tiktoken.core")
    module.Encoding = Encoding
    file.write_bytes(pickle.dumps(Encoding(ranks)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "base_checkpoints" / "d4"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(nanochats(SHAPE), folder / "model_000050.pt")
    (folder / "meta_000050.json").write_text(json.dumps({"step": 50, "model_config": SHAPE}))
    return folder / "model_000050.pt"


@pytest.mark.skipif(not (CHECKOUT / "nanochat/gpt.py").is_file(), reason="no checkout of nanochat")
def test_logits_are_nanochats(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(CHECKOUT), json.dumps(SHAPE), str(tmp_path)],
        env={**os.environ, "NANOCHAT_DTYPE": "float32", "TORCH_COMPILE_DISABLE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected = torch.load(tmp_path / "expected.pt")
    model = Transformer.from_pretrained(tmp_path / "model_000050.pt").eval()
    with torch.no_grad():
        logits = model(expected["ids"])
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)


def test_the_shape_is_that_of_the_meta_file(checkpoint: Path) -> None:
    config = TransformerConfig.from_pretrained(checkpoint)
    assert (config.sliding_window, config.sliding_layers) == (129, [0, 1])
    assert (config.value_embeddings, config.backout_layer) == ([1, 3], 2)
    model = Transformer.from_pretrained(checkpoint)
    held = torch.load(checkpoint)
    assert torch.equal(model.value_embeds["3"].weight, held["value_embeds.3.weight"][:265].float())
    assert model.layers[2].mix.first.item() == held["x0_lambdas"][2].item()
    assert model.embed.weight.shape == (265, 48)


def test_it_is_imported_with_its_tokenizer(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer lies where nanochat keeps it. 265 ids: the bytes and nine control tokens."""
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer" / "tokenizer.pkl", monkeypatch)
    assert main(["import", str(checkpoint), str(tmp_path / "out")]) == 0
    model, tokenizer = load_model(tmp_path / "out")
    original, _ = load_model(checkpoint)
    ids = torch.tensor([tokenizer.encode("as it is")])
    with torch.no_grad():
        assert torch.equal(model(ids), original(ids))
    assert tokenizer.stop_ids == [256, 260]


def test_the_tokenizer_merges_as_tiktoken_does(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = (b"th", b"in", b" th", b"ing", b" thing", b"\xc3\xa9", b"hi")
    write_tokenizer(checkpoint.with_name("tokenizer.pkl"), monkeypatch, *merged)
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    ranks = {token: 256 + i for i, token in enumerate(merged)}
    # The lowest rank first: "th" before "hi", " th" and "in", then the whole piece.
    assert tokenizer.encode("this") == [ranks[b"th"], ord("i"), ord("s")]
    assert tokenizer.encode(" thing") == [ranks[b" thing"]]
    assert tokenizer.encode("h\u00e9 12345") == [
        ord("h"), ranks[b"\xc3\xa9"], ord(" "), *b"12345",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("th\u00e9\n\U0001f600")) == "th\u00e9\n\U0001f600"
    assert tokenizer.encode("<|bos|>", allow_special=True) == [256 + len(merged)]
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    bos, start, end, answer = (256 + len(merged) + i for i in range(4))
    prompt = ChatFormat(tokenizer).prompt_ids(talk)
    assert prompt == [bos, start, *b"s\n\nq", end, answer]


def test_a_pickle_that_runs_code_is_refused(checkpoint: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch touched",)

    checkpoint.with_name("tokenizer.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"tokenizer\.pkl: not the tokenizer.*holds posix\.system"):
        Tokenizer.from_pretrained(checkpoint)


def test_mistakes(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no tokenizer; copy nanochat's tokenizer/tokenizer\.pkl"):
        Tokenizer.from_pretrained(checkpoint)
    held, meta = torch.load(checkpoint), checkpoint.with_name("meta_000050.json")
    torch.save({**held, "new": torch.zeros(1)}, checkpoint)
    with pytest.raises(UserError, match="unknown tensors: new: written by another version"):
        Transformer.from_pretrained(checkpoint)
    torch.save({k: v for k, v in held.items() if k != "smear_lambda"}, checkpoint)
    with pytest.raises(UserError, match="tensor smear_lambda is missing: written by another"):
        Transformer.from_pretrained(checkpoint)
    torch.save({**held, "smear_gate.weight": torch.zeros(1, 12)}, checkpoint)
    with pytest.raises(UserError, match=r"smear_gate\.weight has shape \(1, 12\)"):
        Transformer.from_pretrained(checkpoint)
    checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"model_000050\.pt: not a whole nanochat model"):
        Transformer.from_pretrained(checkpoint)
    meta.write_text(json.dumps({"model_config": {**SHAPE, "window_pattern": "SX"}}))
    with pytest.raises(UserError, match="window_pattern='SX' is not made of S and L"):
        TransformerConfig.from_pretrained(checkpoint)
    meta.write_text("{}")
    with pytest.raises(UserError, match="not the meta file of a nanochat model"):
        TransformerConfig.from_pretrained(checkpoint)
    meta.unlink()
    assert main(["import", str(checkpoint), str(checkpoint.with_name("out"))]) == 2
    assert "nanochat writes it beside model_000050.pt" in capfd.readouterr().err
