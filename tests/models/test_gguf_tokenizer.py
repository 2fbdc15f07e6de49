"""Tokenizers in GGUF files: every split it has a name for, both kinds of vocabulary, against transformers' reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.gguf import gguf_tokenizer
from lit_llm.models.gguf_file import GGUFFile
from lit_llm.models.gguf_write import write_gguf
from lit_llm.models.tokenizer import SPLIT_PATTERN, Tokenizer, begin_with
from lit_llm.models.transformer import Transformer

TEXTS = [
    "It's  1,234 naïve 日本語\n\n\tx = y",
    "don't  stop 🙂 2024",
    "<|im_end|> <s> ",
    "a\r\n  b\n",
    "",
    " x",
]
SPLITTERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT_PATTERN.replace("{1,3}", "")), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(text_folder: Path) -> list[str]:
    return [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:6]]


def byte_level(corpus: list[str], split: str) -> Tokenizer:
    backend = Backend(models.BPE(ignore_merges=split == "llama-bpe"))
    backend.pre_tokenizer = SPLITTERS[split]
    backend.decoder = decoders.ByteLevel()
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return Tokenizer(
        backend, bos_token="<|endoftext|>", eos_token="<|im_end|>", chat_template="{{ messages }}"
    )


def sentencepiece(corpus: list[str], prefix: bool) -> Tokenizer:
    """As transformers converts a SentencePiece BPE: all pairs that make a token, by its score."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    found = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", "<s>", "</s>", *spelled, *(token for token, _ in found)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens[3 + len(spelled) :]
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    backend = Backend(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>")


def written(tokenizer: Tokenizer, file: Path, extra: int = 3) -> Path:
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size + extra,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        family="llama",
    )
    write_gguf(Transformer(config), tokenizer, file, "f32")
    return file


@pytest.mark.parametrize("split", SPLITTERS)
def test_byte_level(split: str, tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, split)
    file = written(tokenizer, tmp_path / "m.gguf")
    meta = GGUFFile(file).metadata
    assert meta["tokenizer.ggml.pre"] == split and meta["tokenizer.ggml.model"] == "gpt2"
    assert meta["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.vocab_size + 2}]"
    again = gguf_tokenizer(file)
    assert (
        again.vocab_size == tokenizer.vocab_size and again.special_names == tokenizer.special_names
    )
    assert (
        again.control_tokens == tokenizer.control_tokens
        and again.chat_template == tokenizer.chat_template
    )
    for text in [*TEXTS, corpus[-1], "a <tool> b"]:
        for special in (False, True):
            assert again.encode(text, special) == tokenizer.encode(text, special)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = sentencepiece(corpus, prefix)
    file = written(tokenizer, tmp_path / "m.gguf")
    assert GGUFFile(file).metadata["tokenizer.ggml.model"] == "llama"
    again = gguf_tokenizer(file)
    assert json.loads(again._backend.to_str())["model"]["merges"] is not None
    for text in [*TEXTS, corpus[-1][:20_000]]:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert again.encode("<s>", allow_special=True) == tokenizer.encode("<s>", allow_special=True)
    assert again.bos_id == 1 and again.eos_id == 2


@pytest.mark.parametrize("kind", ["llama-bpe", "sentencepiece"])
def test_transformers_encodes_the_same(kind: str, tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = sentencepiece(corpus, True) if kind == "sentencepiece" else byte_level(corpus, kind)
    written(tokenizer, tmp_path / "m.gguf", extra=0)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in (corpus[-1][:5_000], "def f(x):\n    return 12"):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, read = _pair(tmp_path_factory)
    assert read.encode(text) == ours.encode(text)


_CACHE: list[tuple[Tokenizer, Tokenizer]] = []


def _pair(factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    if not _CACHE:
        ours = sentencepiece(
            ["the cat sat on the mat, and then the other cat sat there too " * 3], True
        )
        _CACHE.append((ours, gguf_tokenizer(written(ours, factory.mktemp("spm") / "m.gguf"))))
    return _CACHE[0]


def test_splits_without_a_name_are_refused(tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, "gpt-2")
    spec = json.loads(tokenizer._backend.to_str())
    for change in (
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**spec["pre_tokenizer"], "add_prefix_space": True}},
        {"model": {**spec["model"], "ignore_merges": True}},
        {"model": {"type": "WordPiece", "vocab": spec["model"]["vocab"], "unk_token": "<|endoftext|>",
                   "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}},
    ):  # fmt: skip
        other = Tokenizer(Backend.from_str(json.dumps({**spec, **change})))
        with pytest.raises(UserError, match=r"no name for how|WordPiece cannot be written"):
            written(other, tmp_path / "m.gguf")
    spec = json.loads(sentencepiece(corpus, True)._backend.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][::2]
    with pytest.raises(UserError, match="cannot say this tokenizer's merges"):
        written(Tokenizer(Backend.from_str(json.dumps(spec))), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_no_bos_where_the_file_says_so(tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, "gpt-2")
    begin_with(tokenizer._backend, tokenizer.special_names["bos_token"])
    file = written(tokenizer, tmp_path / "m.gguf")
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    whole = file.read_bytes()
    assert whole.count(key + b"\1") == 1
    file.write_bytes(whole.replace(key + b"\1", key + b"\0"))
    assert gguf_tokenizer(file).document_start == [] and tokenizer.document_start == [
        tokenizer.bos_id
    ]
