"""``lit_llm merge``: sums of updates, the line to the base, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn

from lit_llm import LoRAConfig, Tokenizer, Transformer, TransformerConfig
from lit_llm.cli import main
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.adapters import load_adapter, save_adapter
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels.quantized import Format
from lit_llm.models.lora import apply_lora, lora_layers

SHAPE = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 64}


def random_base(folder: Path, tokenizer: Tokenizer, seed: int) -> Path:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**SHAPE, vocab_size=tokenizer.vocab_size))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(
    folder: Path, base: Path, seed: int, quantize: Format | None = None, **config
) -> Path:
    """An adapter as SFTModule writes it."""
    model = Transformer.from_pretrained(base)
    torch.manual_seed(seed)
    apply_lora(model, LoRAConfig(**{"rank": 4, **config}))
    for layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.05)
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.data *= 1.1
    save_adapter(model, folder, str(base))
    plain = Transformer.from_pretrained(base)
    AdapterBase(str(base), digest(plain.state_dict().items()), "float32", quantize).write(folder)
    return folder


@pytest.fixture(scope="module")
def places(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two adapters of it, and one of another base."""
    folder = tmp_path_factory.mktemp("places")
    tokenizer = Tokenizer.from_pretrained(corpus / "tokenizer")
    base = random_base(folder / "base", tokenizer, 1)
    random_adapter(folder / "a", base, 2)
    random_adapter(folder / "b", base, 3, rank=8, targets=("q_proj", "down_proj"))
    random_adapter(folder / "dora", base, 4, dora=True)
    random_adapter(folder / "nf4", base, 5, quantize="nf4")
    random_adapter(folder / "int8", base, 6, quantize="int8")
    random_adapter(folder / "other", random_base(folder / "base2", tokenizer, 7), 8)
    return folder


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(1, 30)[None])


def merged(
    capsys: pytest.CaptureFixture[str], out: Path, *args: object
) -> tuple[Transformer, float]:
    """Run the verb; return what it wrote and the divergence it printed."""
    assert main(["merge", *map(str, args)]) == 0
    printed = capsys.readouterr().out
    found = re.search(r"KL per token from .* to the merged model: (\S+) nats", printed)
    assert found and f"{out}: " in printed
    return Transformer.from_pretrained(out), float(found[1])


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main(["merge", *map(str, args)]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


@pytest.mark.parametrize("adapter", ["a", "b", "dora"])
def test_one_adapter_is_what_the_adapter_computes(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: str
) -> None:
    out = tmp_path / "out"
    model, distance = merged(capsys, out, places / adapter, out)
    expected = Transformer.from_pretrained(places / "base")
    load_adapter(expected, places / adapter)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    assert distance < 1e-6
    assert transformers.AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 512
    assert Tokenizer.from_pretrained(out).encode("a b") == (
        Tokenizer.from_pretrained(places / "base").encode("a b")
    )


def test_a_weighted_sum_is_that_of_peft(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT's "cat" adds the products; its "linear" would add the factors."""
    out = tmp_path / "out"
    model, _ = merged(capsys, out, f"{places / 'a'}:0.5", f"{places / 'b'}:-0.25", out)
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(places / "base"), places / "a", "a"
    )
    theirs.load_adapter(places / "b", "b")
    theirs.add_weighted_adapter(["a", "b"], [0.5, -0.25], "c", combination_type="cat")
    theirs.set_adapter("c")
    with torch.no_grad():
        expected = theirs(torch.arange(1, 30)[None]).logits
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adapter", ["a", "dora"])
def test_the_line_between_base_and_finetuned(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: str
) -> None:
    base = Transformer.from_pretrained(places / "base").state_dict()
    whole, _ = merged(capsys, tmp_path / "whole", places / adapter, tmp_path / "whole")
    for share in (0.0, 0.7):
        out = tmp_path / str(share)
        part, _ = merged(capsys, out, places / adapter, out, "--with_base", share)
        for name, end in whole.state_dict().items():
            torch.testing.assert_close(
                part.state_dict()[name],
                base[name] + share * (end - base[name]),
                rtol=1e-4,
                atol=1e-6,
            )


def test_a_run_of_all_weights_has_a_line_too(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(places / "base2", run / "final")
    (run / "config.yaml").write_text(f"model: {{init_args: {{init_from: {places / 'base'}}}}}\n")
    model, distance = merged(capsys, out, run, out, "--with_base", 0.25)
    start, end = (Transformer.from_pretrained(places / n).state_dict() for n in ("base", "base2"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * end[name])
    assert distance > 1e-3
    assert "--with_base W" in refused(capsys, run, tmp_path / "x")
    assert "--onto" in refused(capsys, run, tmp_path / "x", "--with_base", 1, "--onto", "original")


def test_trained_beside_four_bits(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, near = merged(capsys, tmp_path / "t", places / "nf4", tmp_path / "t")
    original, far = merged(
        capsys, tmp_path / "o", places / "nf4", tmp_path / "o", "--onto", "original"
    )
    quantized, _ = load_quantized(places / "base", "nf4", torch.float32)
    for model, base in (
        (trained, quantized), (original, Transformer.from_pretrained(places / "base"))
    ):  # fmt: skip
        load_adapter(base, places / "nf4")
        torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)
    assert near < far / 10


def test_bfloat16_is_the_dtype_of_the_folder(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, distance = merged(
        capsys, tmp_path / "out", places / "nf4", tmp_path / "out", "--dtype", "bfloat16"
    )
    assert model.embed.weight.dtype == torch.bfloat16 and 0 < distance < 0.01


def test_a_run_folder_gives_its_adapter(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(places / "a", tmp_path / "run" / "adapter")
    model, _ = merged(capsys, tmp_path / "out", f"{tmp_path / 'run'}:2", tmp_path / "out")
    twice, _ = merged(capsys, tmp_path / "two", places / "a", places / "a", tmp_path / "two")
    torch.testing.assert_close(logits(model), logits(twice), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_program_names_its_base(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = shutil.copytree(places / "a", tmp_path / "theirs")
    (theirs / "base.json").unlink()
    merged(capsys, tmp_path / "out", theirs, tmp_path / "out")
    file = theirs / "adapter_config.json"
    file.write_text(file.read_text().replace(str(places / "base"), ""))
    assert "names no base; give it with --base" in refused(capsys, theirs, tmp_path / "x")
    merged(capsys, tmp_path / "two", theirs, tmp_path / "two", "--base", places / "base")


def test_mistakes(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    a, b = places / "a", places / "b"
    for args, message in (
        ((a, places / "other", out), "was trained beside another base"),
        ((a, out, "--base", places / "base2"), "its weights are not those beside which"),
        ((places / "nf4", places / "int8", out), "--onto original"),
        ((a, places), "is not empty"),
        ((tmp_path / "none", out), "no such folder"),
        ((f"{a}:nan", out), "weight must be a number"),
        ((tmp_path, out), "holds no adapter and no final/"),
        ((a, b, out, "--with_base", 1.5), "must be"),
    ):
        assert message in refused(capsys, *args)
    checkpoint = tmp_path / "x.ckpt"
    checkpoint.touch()
    assert "lit_llm export" in refused(capsys, checkpoint, out)
    (broken := shutil.copytree(a, tmp_path / "broken") / "base.json").write_text("{")
    assert str(broken) in refused(capsys, broken.parent, out)
    assert not out.exists() and not list(tmp_path.glob("*.part"))
    merged(
        capsys, out, places / "nf4", places / "int8", out, "--onto", "original"
    )  # each with its own weights, added to those of before
