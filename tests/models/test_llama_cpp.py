"""GGUF files in llama.cpp itself: what is written loads, computes and tokenizes as transformers
does; what is refused would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.hub.gguf import names as gguf_names
from lit_llm.models.hub.gguf.names import gguf_arch_of
from lit_llm.models.hub.gguf.read import load_gguf, read_tokenizer
from lit_llm.models.hub.gguf.splits import _SPLITS, pre_tokenizer_of
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer, begin_with
from lit_llm.models.transformer import Transformer
from tests.models.llama_cpp import (
    GELU,
    GELU_TOLERANCE,
    TOLERANCE,
    LlamaCpp,
    llama_cpp,  # noqa: F401
)
from tests.models.test_families import CONFIGS, random_pair
from tests.models.test_gguf_families import MODELS, REFUSED, random_model
from tests.models.test_gguf_tokenizer import (
    END_TOKENS,
    byte_level,
    gemma,
    phi3,
    sentencepiece,
    written,
)

pytestmark = pytest.mark.slow
TEXTS = [
    "It's  1,234 naïve 日本語\n\n\tx = y", "DON'T I'LL WE'VE 'S", "<|im_end|> <s> </s>", "", " x",
    "  x", "   x   y  ", "a\r\n  b\n", "\n\n\n", "\t\t a\tb", "12345678 1234 12 1", "½ Ⅷ ² ٣٤٥",
    "a  b   c    d     e", "x=1;y+=2//3 == <= >= ^~|$`", "\u00a0a\u2003b\u3000c\u0085d\u2028e",
    "한국어 हिन्दी नमस्ते مرحبا", "👩\u200d👧 \u200b\ufeffz", "_a1_ __init__", "<tool> a <tool>b",
    "\u2026\u2014\u201c\u201d", "\x01\x7f", "ﬁ ß İ", "trailing   ", "\u2581a x\u2581y",
    "\U0001d400\U00020000", "https://example.com/a?b=c&d=e#f", " \n \n ", "1a2b3c",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(text_folder: Path) -> Tokenizer:
    texts = [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:10]]
    return Tokenizer.train(texts, 600)


@pytest.fixture(scope="module")
def corpus(text_folder: Path) -> list[str]:
    return [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:3]]


def tolerance(model: Transformer) -> float:
    return GELU_TOLERANCE if gguf_arch_of(model.config) in GELU else TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_continues_as_in_transformers(
    name: str, llama_cpp: LlamaCpp, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    theirs, ours = random_pair(name, tmp_path / "hf", {"vocab_size": tokenizer.vocab_size})
    file = tmp_path / "m.gguf"
    try:
        write_gguf(ours, tokenizer, file, "f32")
    except UserError as refused:
        assert "no GGUF architecture" in str(refused)
        return
    prompt = torch.randint(5, 97, (1, 11), generator=torch.Generator().manual_seed(1))
    ids = theirs.generate(
        prompt, do_sample=False, min_new_tokens=12, max_new_tokens=12, pad_token_id=0
    )
    answer = llama_cpp(file, rows=ids.tolist())
    assert "error" not in answer, answer["error"]
    expected, got = theirs(ids).logits, torch.tensor(answer["logits"])
    torch.testing.assert_close(got, expected, atol=tolerance(ours), rtol=0)
    two = expected.topk(2).values
    clear = two[..., 0] - two[..., 1] > 2 * tolerance(ours)
    assert torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear])


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_computed(
    name: str, llama_cpp: LlamaCpp, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(MODELS[name][1], tokenizer)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    ids = torch.randint(0, 600, (2, 40), generator=torch.Generator().manual_seed(1))
    answer = llama_cpp(tmp_path / "m.gguf", rows=ids.tolist())
    assert "error" not in answer, answer["error"]
    expected = model(ids)
    limit = tolerance(model) * max(1.0, float(expected.std()))
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, atol=limit, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_for_llama_cpp_alone_fails_there(
    name: str,
    llama_cpp: LlamaCpp,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit that a later release no longer has shows here."""
    monkeypatch.setattr(gguf_names, "beyond_limits", lambda config, kind: [])
    model = random_model(REFUSED[name][0], tokenizer)
    try:
        write_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    except UserError:
        pytest.skip("GGUF itself has no words for it")
    ids = torch.randint(0, 600, (1, 40), generator=torch.Generator().manual_seed(1))
    answer = llama_cpp(tmp_path / "m.gguf", rows=ids.tolist())
    if "error" not in answer:
        difference = (torch.tensor(answer["logits"]) - model(ids)).abs().max()
        assert difference > 2 * GELU_TOLERANCE, "llama.cpp computes it"


@torch.no_grad()
@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3", "gpt2", "granite"])
def test_every_quantization_loads(
    name: str, quantization: Any, llama_cpp: LlamaCpp, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = random_model(MODELS[name][1], tokenizer)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", quantization)
    ids = torch.randint(0, 600, (1, 40), generator=torch.Generator().manual_seed(1))
    answer = llama_cpp(tmp_path / "m.gguf", rows=ids.tolist())
    assert "error" not in answer, answer["error"]
    expected = load_gguf(tmp_path / "m.gguf")[0](ids)  # llama.cpp rounds the activations too
    error = (torch.tensor(answer["logits"]) - expected).abs().mean() / expected.std()
    assert error < (0.03 if quantization == "q8_0" else 0.02)


TOKENIZERS = {
    **{split.names[0]: split for split in _SPLITS},
    "sentencepiece": True,
    "sentencepiece, no space": False,
    "gemma": gemma,
    "phi3": phi3,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.filterwarnings("ignore:.*tokenizer.ggml.pre")
def test_texts_are_cut_as_in_transformers(
    kind: str, begins: bool, llama_cpp: LlamaCpp, corpus: list[str], tmp_path: Path
) -> None:
    how = TOKENIZERS[kind]
    if isinstance(how, bool):
        tokenizer = sentencepiece(corpus, how)
    elif callable(how):
        tokenizer = how(corpus)
    else:
        tokenizer = byte_level(corpus, how.names[0], pre_tokenizer_of(how), how.ignore_merges)
    if begins:
        begin_with(tokenizer.backend, tokenizer.special_names["bos_token"])
    file = written(tokenizer, tmp_path / "m.gguf")
    answer = llama_cpp(file, TEXTS)
    assert "error" not in answer, answer["error"]
    assert answer["adds_bos"] is begins and not answer["adds_eos"]
    assert (answer["bos"], answer["eos"]) == (tokenizer.bos_id, tokenizer.eos_id)
    again = read_tokenizer(file)
    for text, plain, special in zip(TEXTS, answer["plain"], answer["special"], strict=True):
        assert plain == tokenizer.encode(text) == again.encode(text), text
        assert special == tokenizer.encode(text, True) == again.encode(text, True), text


@pytest.mark.parametrize(
    "stops", [["<|im_end|>", "<|endoftext|>"], ["</s>", *END_TOKENS[:2]], END_TOKENS[:3]]
)
def test_generation_ends_at_every_stop_id(
    stops: list[str], llama_cpp: LlamaCpp, corpus: list[str], tmp_path: Path
) -> None:
    tokenizer = byte_level(corpus, "gpt-2", more=["</s>", *END_TOKENS], eos_token=stops[0])
    tokenizer.add_stop_ids(tokenizer.control_tokens[name] for name in stops)
    answer = llama_cpp(written(tokenizer, tmp_path / "m.gguf"))
    assert answer["eos"] == tokenizer.stop_ids[0] and set(tokenizer.stop_ids) <= set(answer["eog"])
