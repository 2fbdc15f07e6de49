"""``data.add_tokens``: runs in which the vocabulary grows, what they write, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
import transformers
from driver import together
from safetensors.torch import load_file
from test_sft import data, fit, metrics, rows  # noqa: F401

from lit_llm import (
    FSDP2Strategy,
    InstructionDataModule,
    LoRAConfig,
    SFTModule,
    Tokenizer,
    Transformer,
    UserError,
)
from lit_llm.cli import main
from lit_llm.models.hub.adapters import load_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.parallel.sharded_checkpoint import open_shards

TOKENS = ["<|im_start|>", "<|im_end|>"]
PADDING = 1  # rows without a token in a padded base: one of the two new tokens finds room
TEXT = "Is it right? yes no maybe user assistant 0 1 2 3 4 5 6 7 8 9"
SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 64}
PROMPT = torch.arange(60)[None]


def draw(model: Transformer) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


@pytest.fixture(scope="module", params=["tied", "padded"])
def base(
    request: pytest.FixtureRequest,
    bare_base: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A random model without a chat template and its control tokens."""
    tied = request.param == "tied"
    padding = 0 if tied else PADDING
    return bare_base(
        tmp_path_factory.mktemp("base"), TEXT, draw, padding, **SHAPE, tie_embeddings=tied
    )


def module(base: Path, **settings: Any) -> SFTModule:
    L.seed_everything(1, verbose=False)
    settings = {"lora": LoRAConfig(rank=4), "learning_rate": 1e-2, **settings}
    return SFTModule(str(base), **settings)


def chatml(rows: Path, cache: Path, **settings: Any) -> InstructionDataModule:
    return data(rows, cache, **{"chat_template": "chatml", **settings})


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PROMPT)


def test_only_the_new_rows_train_and_everything_written_is_one_model(
    tmp_path: Path, base: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = module(base)
    fit(tmp_path, ours, chatml(rows, tmp_path / "cache"), max_steps=6)
    before, after = (
        Transformer.from_pretrained(base),
        Transformer.from_pretrained(tmp_path / "final"),
    )
    known = Tokenizer.from_pretrained(base).vocab_size
    tied = before.config.tie_embeddings
    assert after.config.vocab_size == known + 2 and after.config.tie_embeddings == tied
    assert (after.head.weight is after.embed.weight) == tied
    for name in ("embed", "head"):
        old, new = getattr(before, name).weight, getattr(after, name).weight
        assert torch.equal(old[:known], new[:known])
        assert ((new[known:] - old[:known].mean(0)).abs().amax(1) > 1e-3).all(), name
    expected = logits(ours.network)
    torch.testing.assert_close(logits(after), expected, rtol=1e-4, atol=1e-4)

    last = max((tmp_path / "checkpoints").glob("step-*.ckpt"))
    held = torch.load(last, weights_only=True)["state_dict"]
    rows_held = {name: value for name, value in held.items() if "added_rows" in name}
    assert all("lora_" in name for name in held.keys() - rows_held.keys())
    assert {(v.dtype, tuple(v.shape)) for v in rows_held.values()} == {(torch.float32, (2, 32))}
    # The checkpoint's tokenizer is written by the command line's callback, not by the Trainer.
    Tokenizer.from_pretrained(tmp_path / "final").save_pretrained(tmp_path / "tokenizer")
    torch.testing.assert_close(logits(load_model(last)[0]), expected, rtol=1e-4, atol=1e-4)
    alone = SFTModule.load_from_checkpoint(last, map_location="cpu")
    torch.testing.assert_close(logits(alone.network), expected, rtol=1e-4, atol=1e-4)

    adapter = tmp_path / "adapter"
    model, tokenizer = load_model(base, adapter)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert list(tokenizer.encode("".join(TOKENS), True)) == [known, known + 1]
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    printed = capsys.readouterr().out
    assert float(printed.split("merged model: ")[1].split()[0]) < 1e-6
    merged, _ = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs.resize_token_embeddings(len(transformers.AutoTokenizer.from_pretrained(adapter)))
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(theirs, adapter).eval()(PROMPT).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folder", ["final", "adapter"])
def test_template_tokens_and_stops_are_written(
    tmp_path: Path, base: Path, rows: Path, folder: str
) -> None:
    fit(tmp_path, module(base), chatml(rows, tmp_path / "cache"), max_steps=1)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
    known = Tokenizer.from_pretrained(base).vocab_size
    assert theirs.convert_tokens_to_ids(TOKENS) == [known, known + 1]
    assert theirs.eos_token == "<|im_end|>" and len(theirs) == known + 2
    prompt = theirs.apply_chat_template([{"role": "user", "content": "Is it?"}], tokenize=False)
    assert prompt == "<|im_start|>user\nIs it?<|im_end|>\n"
    assert theirs(prompt).input_ids.count(known) == 1
    assert Tokenizer.from_pretrained(tmp_path / folder).encode("<|im_end|>") != [known + 1]
    if folder == "final":
        fields = json.loads((tmp_path / folder / "generation_config.json").read_text())
        eos = Tokenizer.from_pretrained(base).eos_id
        assert set(fields["eos_token_id"]) == {eos, known + 1}


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": None, "learning_rate": 1e-3}, {"quantize": "nf4"},
     pytest.param({"anchor": 0.5, "neftune": 2.0}, marks=pytest.mark.slow),
     pytest.param({"lora": LoRAConfig(rank=2, train_modules=("embed",))}, marks=pytest.mark.slow),
     pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow)],
    ids=["lora", "full", "nf4", "anchor", "whole", "bf16"],
)  # fmt: skip
def test_resume_is_bit_equal(
    tmp_path: Path, base: Path, rows: Path, settings: dict[str, Any]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    precision = settings.get("precision", "32-true")
    settings = {key: value for key, value in settings.items() if key != "precision"}
    for folder, stops in ((whole, [6]), (parts, [3, 6])):
        for number, stop in enumerate(stops):
            last = max((folder / "checkpoints").glob("step-*.ckpt")) if number else None
            source = chatml(rows, tmp_path / "cache", add_tokens=["[X]"])
            fit(
                folder, module(base, **settings), source, last, max_steps=stop, precision=precision
            )  # fmt: skip
    losses = [[row["train_loss"] for row in metrics(folder)] for folder in (whole, parts)]
    assert losses[0] == losses[1]
    one, other = (folder / "final" / "model.safetensors" for folder in (whole, parts))
    assert one.read_bytes() == other.read_bytes()
    final = Transformer.from_pretrained(whole / "final")
    assert final.config.vocab_size == Tokenizer.from_pretrained(base).vocab_size + 3
    # The command line's callback writes the tokenizer there.
    Tokenizer.from_pretrained(whole / "final").save_pretrained(whole / "tokenizer")
    dtype = final.embed.weight.dtype
    assert dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    loaded, _ = load_model(max((whole / "checkpoints").glob("step-*.ckpt")), dtype=dtype)
    torch.testing.assert_close(logits(loaded), logits(final))
    if (whole / "adapter").is_dir() and "quantize" not in settings:
        adapted, _ = load_model(base, whole / "adapter", dtype)
        torch.testing.assert_close(logits(adapted), logits(final), rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_train_stay_the_mean(tmp_path: Path, base: Path, rows: Path) -> None:
    lora = LoRAConfig(rank=4, train_tokens="none")
    fit(tmp_path, module(base, lora=lora), chatml(rows, tmp_path / "cache"), max_steps=2)
    embed = Transformer.from_pretrained(tmp_path / "final").embed.weight
    known = Tokenizer.from_pretrained(base).vocab_size
    torch.testing.assert_close(embed[known:], embed[:known].mean(0).expand(2, -1))
    adapted = Transformer.from_pretrained(base)
    load_adapter(adapted, tmp_path / "adapter")  # which has the rows, so that none is missing
    final = Transformer.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(logits(adapted), logits(final), rtol=1e-4, atol=1e-4)


def test_tokens_that_exist_are_told_and_not_added(
    tmp_path: Path, base: Path, rows: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, module(base, lora=None), chatml(rows, tmp_path / "cache"), max_steps=1)
    again = chatml(rows, tmp_path / "cache", tokenizer=str(tmp_path / "final"),
                   add_tokens=["<|im_end|>", "<|new|>"])  # fmt: skip
    known = Tokenizer.from_pretrained(tmp_path / "final").vocab_size
    assert again.added_tokens == {"<|new|>": known}
    assert "not added, the tokenizer has <|im_end|> already" in caplog.text


def sharded(rank: int, folder: Path, base: Path, rows: Path, ranks: int, ddp: bool) -> int:
    torch.set_num_threads(1)
    strategy: Any = {"strategy": "ddp" if ddp else FSDP2Strategy()} if ranks > 1 else {}
    source = chatml(rows, folder.parent / "cache", num_workers=0)
    fit(folder, module(base, learning_rate=3e-3), source, max_steps=4, devices=ranks, **strategy)
    return 0


@pytest.mark.slow
def test_two_processes_train_the_same_rows_as_one(tmp_path: Path, base: Path, rows: Path) -> None:
    out = tmp_path / "out"
    for name, ranks in (("one", 1), ("fsdp", 2), ("ddp", 2)):
        at = (sharded, tmp_path / name, base, rows, ranks, name == "ddp")
        assert together(ranks, out, *at) == 0, out.read_text()[-3000:]
    expected = load_file(tmp_path / "one" / "adapter" / "adapter_model.safetensors")
    assert any("trainable_tokens_delta" in name for name in expected)
    for name in ("fsdp", "ddp"):
        found = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    held = open_shards(max((tmp_path / "fsdp" / "checkpoints").glob("step-*.ckpt")))["state_dict"]
    assert any("added_rows" in name for name in held)
    assert not any(name.endswith("embed.weight") for name in held)


def test_a_corpus_has_the_tokens_of_its_own_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "pretrain/quickstart", "--data.add_tokens", "['<x>']"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unknown key data.add_tokens: tokens are added in finetuning" in line


def test_mistakes(tmp_path: Path, base: Path, rows: Path, bare_base: Callable[..., Path]) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"lora.train_tokens=added: no token is added to the base"):
        lora = LoRAConfig(rank=4, train_tokens="added")
        fit(tmp_path, module(base, lora=lora), chatml(rows, cache, chat_template="plain"))
    with pytest.raises(UserError, match=r"lora.train_tokens=all: set lora.train_modules"):
        LoRAConfig(train_tokens="all")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lora.train_tokens=none: lora.train_modules trains all"):
        LoRAConfig(train_tokens="none", train_modules=("embed", "head"))
    with pytest.raises(UserError, match=r"rows of added tokens .*precision=bf16-true would hold"):
        fit(tmp_path, module(base), chatml(rows, cache), precision="bf16-true")
    fit(tmp_path, module(base), chatml(rows, cache), max_steps=1)
    last = max((tmp_path / "checkpoints").glob("step-*.ckpt"))
    more = chatml(rows, cache, add_tokens=["<x>"])
    said = r"data.add_tokens: the checkpoint has rows of the added tokens <\|im_start\|> \(.*<x> \("
    with pytest.raises(UserError, match=said):
        fit(tmp_path, module(base), more, last)
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["hyper_parameters"]["added_tokens"] = {"<|im_start|>": 400}
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(
        UserError, match=r"rows of the added tokens <\|im_start\|> \(400\), and now"
    ):
        fit(tmp_path, module(base), chatml(rows, cache), tmp_path / "changed.ckpt")
    other = bare_base(tmp_path / "other", TEXT, draw, **SHAPE)
    tokenizer = Tokenizer.from_pretrained(other)
    tokenizer.backend.add_special_tokens(["<|im_end|>"])
    Tokenizer(tokenizer.backend).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"the data has another tokenizer than model.init_from"):
        fit(tmp_path, module(other), chatml(rows, cache, tokenizer=str(tmp_path / "theirs")))
