"""Tokenizers in GGUF files: every split it has a name for, both kinds of vocabulary, against
transformers' reading."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.hub.gguf.read import read_tokenizer
from lit_llm.models.hub.gguf.write import write_gguf
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
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
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


def byte_level(
    corpus: list[str],
    split: str,
    splitter: pre_tokenizers.PreTokenizer | None = None,
    ignore_merges: bool | None = None,
    more: list[str] | None = None,
    eos_token: str = "<|im_end|>",
) -> Tokenizer:
    whole = split == "llama-bpe" if ignore_merges is None else ignore_merges
    backend = Backend(models.BPE(ignore_merges=whole))
    backend.pre_tokenizer = splitter or SPLITTERS[split]
    backend.decoder = decoders.ByteLevel()
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(more or [])],
        show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return Tokenizer(
        backend, bos_token="<|endoftext|>", eos_token=eos_token, chat_template="{{ messages }}"
    )


# End of generation for a model that says so; llama.cpp knows none of them by name.
END_TOKENS = ["<|turn|>", "<|stop|>", "<|over|>", "<|out|>"]
RUNS = ["\u2581" * length for length in (2, 3, 4)]


def sentencepiece_parts(
    corpus: list[str], special: list[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as transformers converts a SentencePiece BPE: all pairs that make a
    token, by its score."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    found = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = list(dict.fromkeys([*special, *spelled, *(token for token, _ in found)]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens
        if token[0] != "<" and token != "[PAD]"
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return vocabulary, merges


def sentencepiece(corpus: list[str], prefix: bool, special: list[str] | None = None) -> Tokenizer:
    """Llama 2's kind."""
    names = special or ["<unk>", "<s>", "</s>"]
    vocabulary, merges = sentencepiece_parts(corpus, names)
    backend = Backend(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    swallow = {"</s>", "<|user|>", "<|end|>"} if special else set()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in swallow) for t in names]
    )
    return Tokenizer(backend, bos_token="<s>", eos_token=names[-1])


def phi3(corpus: list[str]) -> Tokenizer:
    """Phi-3's: its control tokens swallow the spaces after them."""
    names = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>"]
    return sentencepiece(corpus, True, names)


def gemma(corpus: list[str]) -> Tokenizer:
    """As transformers 5 builds Gemma's, with its added tokens for runs of spaces."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary, merges = sentencepiece_parts(corpus, [*names, *RUNS])
    theirs = transformers.GemmaTokenizer(vocab=vocabulary, merges=merges)
    backend = Backend.from_str(theirs.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(run, normalized=False) for run in RUNS])
    return Tokenizer(backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


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
    again = read_tokenizer(file)
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
    again = read_tokenizer(file)
    assert json.loads(again.backend.to_str())["model"]["merges"] is not None
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
        _CACHE.append((ours, read_tokenizer(written(ours, factory.mktemp("spm") / "m.gguf"))))
    return _CACHE[0]


def test_splits_without_a_name_are_refused(tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, "gpt-2")
    spec = json.loads(tokenizer.backend.to_str())
    for change in (
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**spec["pre_tokenizer"], "add_prefix_space": True}},
        {"model": {**spec["model"], "ignore_merges": True}},
        {"model": {"type": "WordPiece", "vocab": spec["model"]["vocab"],
                   "unk_token": "<|endoftext|>", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100}},
    ):  # fmt: skip
        other = Tokenizer(Backend.from_str(json.dumps({**spec, **change})))
        with pytest.raises(UserError, match=r"no name for how|WordPiece cannot be written"):
            written(other, tmp_path / "m.gguf")
    spec = json.loads(sentencepiece(corpus, True).backend.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][::2]
    with pytest.raises(UserError, match="cannot express this tokenizer's merges"):
        written(Tokenizer(Backend.from_str(json.dumps(spec))), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_no_bos_where_the_file_says_so(tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, "gpt-2")
    begin_with(tokenizer.backend, tokenizer.special_names["bos_token"])
    file = written(tokenizer, tmp_path / "m.gguf")
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    whole = file.read_bytes()
    assert whole.count(key + b"\1") == 1
    file.write_bytes(whole.replace(key + b"\1", key + b"\0"))
    assert read_tokenizer(file).document_start == [] and tokenizer.document_start == [
        tokenizer.bos_id
    ]


def metadata(tokenizer: Tokenizer, folder: Path, name: str = "m") -> dict:
    return GGUFFile(written(tokenizer, folder / f"{name}.gguf")).metadata


def changed(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    """The same tokenizer with parts of its tokenizer.json replaced."""
    spec = json.loads(tokenizer.backend.to_str())
    model = parts.pop("model", {})
    spec = {**spec, **parts, "model": {**spec["model"], **model}}  # type: ignore[dict-item]
    return Tokenizer(Backend.from_str(json.dumps(spec)), **tokenizer.special_names)


_STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": {"type": "Lowercase"}}, 'normalizer {"type": "Lowercase"}'),
        ({"normalizer": {"type": "NFKC"}}, 'normalizer {"type": "NFKC"}'),
        ({"normalizer": {"type": "Sequence",
                         "normalizers": [{"type": "Sequence", "normalizers": [_STRIP]}]}},
         'normalizer {"type": "Strip"'),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix='</w>'"),
        ({"model": {"dropout": 0.1}}, "dropout=0.1"),
        ({"model": {"ignore_merges": True}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Removed",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}]}},
         "Split"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always",
                            "split": False}}, "Metaspace"),
        ({"post_processor": {"type": "RobertaProcessing", "sep": ["a", 70], "cls": ["a", 70],
                             "trim_offsets": True, "add_prefix_space": False}},
         "post_processor puts"),
    ],
)  # fmt: skip
def test_what_llama_cpp_leaves_out_is_refused(
    kind: str, parts: dict, said: str, tmp_path: Path, corpus: list[str]
) -> None:
    tokenizer = byte_level(corpus, "gpt-2") if kind == "byte_level" else sentencepiece(corpus, True)
    with pytest.raises(UserError, match=re.escape(said)):
        written(changed(tokenizer, **parts), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_byte_level_tokenizer_without_merges_is_refused(
    tmp_path: Path, corpus: list[str]
) -> None:
    tokenizer = changed(byte_level(corpus, "gpt-2"), model={"merges": []})
    with pytest.raises(UserError, match="has no merges, and llama"):
        written(tokenizer, tmp_path / "m.gguf")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens_are_refused(flag: str, tmp_path: Path, corpus: list[str]) -> None:
    tokenizer = byte_level(corpus, "gpt-2")
    tokenizer.backend.add_tokens([AddedToken("<think>", normalized=False, **{flag: True})])
    with pytest.raises(UserError, match=f"'<think>' has {flag}=true.*tokenizer.json"):
        written(tokenizer, tmp_path / "m.gguf")


def test_phi3s_tokens_swallow_spaces_by_the_files_name(tmp_path: Path, corpus: list[str]) -> None:
    """llama.cpp goes by general.name, and does not load another model's file with Phi-3 in its
    name."""
    tokenizer = phi3(corpus)
    assert metadata(tokenizer, tmp_path, "mine")["general.name"] == "mine (phi-3)"
    assert metadata(tokenizer, tmp_path, "My-Phi3")["general.name"] == "My-Phi3"
    again = read_tokenizer(tmp_path / "mine.gguf")
    text = "<|user|>\n  Hi<|end|>\n<|endoftext|>  x<unk>  y"
    assert again.encode(text, True) == tokenizer.encode(text, True)
    assert len(tokenizer.encode("<|user|>   ", True)) == 1
    plain = byte_level(corpus, "gpt-2")
    assert metadata(plain, tmp_path, "my-Phi-3-like-phi3")["general.name"] == "my-Phi 3-like-phi 3"


def test_gpt4s_split_without_ignore_merges_has_a_name(tmp_path: Path, corpus: list[str]) -> None:
    spelled = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pattern in (SPLIT_PATTERN, spelled):
        splitter = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), by_bytes]
        )
        tokenizer = byte_level(corpus, "gpt-4", splitter)
        assert metadata(tokenizer, tmp_path)["tokenizer.ggml.pre"] == "dbrx"
        again = read_tokenizer(tmp_path / "m.gguf")
        assert not json.loads(again.backend.to_str())["model"]["ignore_merges"]
        for text in [*TEXTS, corpus[-1]]:
            assert again.encode(text) == tokenizer.encode(text)


def test_a_file_that_names_no_split_is_split_as_llama_cpp_does(
    tmp_path: Path, corpus: list[str]
) -> None:
    """Punctuation apart, digits in threes: GPT-2's split would take "..." and "12345" whole."""
    file = written(byte_level(corpus, "gpt-2"), tmp_path / "m.gguf")
    whole = file.read_bytes()
    key, value = b"tokenizer.ggml.pre", b"\x05\0\0\0\0\0\0\0gpt-2"
    assert whole.count(value) == 1
    for old, new in ((key, b"tokenizer.ggml.prx"), (value, b"\x05\0\0\0\0\0\0\0gpt-3")):
        file.write_bytes(whole.replace(old, new))
        if new.endswith(b"3"):
            with pytest.raises(UserError, match="split 'gpt-3' is not known"):
                read_tokenizer(file)
            continue
        with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre does not name"):
            again = read_tokenizer(file)
    pre_tokenizer = again.backend.pre_tokenizer
    pieces = pre_tokenizer.pre_tokenize_str("ab+= 12345 c?!")  # type: ignore[union-attr]
    assert [piece for piece, _ in pieces] == ["ab", "+=", "\u0120", "123", "45", "\u0120c", "?!"]


def test_transformers_5s_gemma(tmp_path: Path, corpus: list[str]) -> None:
    """Runs of spaces are plain tokens: as user-defined ones llama.cpp would look for their marks
    and write them out."""
    tokenizer = gemma(corpus)
    meta = metadata(tokenizer, tmp_path)
    assert not meta["tokenizer.ggml.add_space_prefix"]
    assert {
        meta["tokenizer.ggml.token_type"][meta["tokenizer.ggml.tokens"].index(r)] for r in RUNS
    } == {1}
    again = read_tokenizer(tmp_path / "m.gguf")
    for text in [*TEXTS, "a  b   c    d     e", corpus[-1][:5000]]:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.backend.add_tokens([AddedToken("\u2581<x>", normalized=False)])
    with pytest.raises(UserError, match="holds the mark of a space, and no merge makes it"):
        written(tokenizer, tmp_path / "n.gguf")


def test_runs_looked_for_in_normalised_text_are_written_as_spaces(
    tmp_path: Path, corpus: list[str]
) -> None:
    tokenizer = sentencepiece(corpus, False)
    tokenizer.backend.add_tokens([AddedToken("\u2581\u2581\u2581", normalized=True)])
    tokenizer = changed(
        tokenizer, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    )
    meta = metadata(tokenizer, tmp_path)
    assert meta["tokenizer.ggml.tokens"][tokenizer.vocab_size - 1] == "   "
    again = read_tokenizer(tmp_path / "m.gguf")
    assert again.encode("a   b") == tokenizer.encode("a   b")
    assert tokenizer.vocab_size - 1 in again.encode("a   b")
    tokenizer.backend.add_tokens([AddedToken("   ", normalized=False)])
    with pytest.raises(UserError, match="two tokens would be written as '   '"):
        written(tokenizer, tmp_path / "n.gguf")


def test_notes_say_what_llama_cpp_does_otherwise(tmp_path: Path, corpus: list[str]) -> None:
    def notes(tokenizer: Tokenizer) -> list[str]:
        config = TransformerConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2
        )
        return write_gguf(Transformer(config), tokenizer, tmp_path / "m.gguf", "f32")

    assert notes(byte_level(corpus, "gpt-2")) == notes(sentencepiece(corpus, True)) == []
    assert "NFC" in notes(byte_level(corpus, "qwen2"))[0]
    mark = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    metaspace = changed(sentencepiece(corpus, True), normalizer=None, pre_tokenizer=mark)
    assert "prepend_scheme='first'" in notes(metaspace)[0]


def test_every_stop_id_travels(tmp_path: Path, corpus: list[str]) -> None:
    """In three keys, by names that llama.cpp knows, and in a list of our own, in order."""
    key = "tokenizer.ggml.{}_token_id".format
    for stops, roles in (
        (["<|endoftext|>", "<|im_end|>"], {"eot": "<|im_end|>"}),
        (["<|turn|>", "<|stop|>", "<|over|>"], {"eot": "<|stop|>", "eom": "<|over|>"}),
        (["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
         {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}),
        (["<|turn|>", "<|eot_id|>", "<|stop|>"], {"eot": "<|stop|>"}),
        (["<|turn|>"], {}),
    ):  # fmt: skip
        more = [*END_TOKENS, "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
        tokenizer = byte_level(corpus, "gpt-2", more=more, eos_token=stops[0])
        tokenizer.add_stop_ids(tokenizer.control_tokens[name] for name in stops)
        meta = metadata(tokenizer, tmp_path)
        ids = {
            role: tokenizer.control_tokens[name]
            for role, name in {"eos": stops[0], **roles}.items()
        }
        assert {role: meta[key(role)] for role in ids} == ids
        assert {key("eot"), key("eom")} & meta.keys() == {key(role) for role in roles}
        again = read_tokenizer(tmp_path / "m.gguf")
        assert again.stop_ids == [tokenizer.control_tokens[name] for name in stops]
    with pytest.raises(
        UserError, match="'<\\|stop\\|>', '<\\|over\\|>', '<\\|out\\|>' too: leave all but two"
    ):
        tokenizer.add_stop_ids(tokenizer.control_tokens[name] for name in END_TOKENS)
        written(tokenizer, tmp_path / "n.gguf")
    tokenizer.add_stop_ids([100_000])
    with pytest.raises(UserError, match=r"eos_token_id 100000 .* beyond the model's"):
        written(tokenizer, tmp_path / "n.gguf")


def test_stop_ids_of_other_peoples_files(tmp_path: Path, corpus: list[str]) -> None:
    """The keys first, then the tokens that llama.cpp knows by name: Llama 3's eot is often in no
    key."""
    tokenizer = byte_level(
        corpus, "gpt-2", more=["<|end|>", "<|return|>", "<|call|>", "<|eot_id|>"]
    )
    file = written(tokenizer, tmp_path / "m.gguf")
    file.write_bytes(
        file.read_bytes().replace(b"lit_llm.stop_token_ids", b"xxx_xxx.stop_token_ids")
    )
    names = {index: name for name, index in tokenizer.control_tokens.items()}
    stops = [names[index] for index in read_tokenizer(file).stop_ids]
    # <|end|> is none where harmony's other two are
    assert stops == ["<|im_end|>", "<|endoftext|>", "<|return|>", "<|call|>", "<|eot_id|>"]


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, corpus: list[str]) -> None:
    """llama.cpp would take token 11 or 2 for it. The model's own eos does."""
    tokenizer = Tokenizer(byte_level(corpus, "gpt-2").backend)
    with pytest.raises(UserError, match=r"no eos token.*tokenizer_config\.json"):
        written(tokenizer, tmp_path / "m.gguf")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2, eos_token_id=7
    )
    write_gguf(Transformer(config), tokenizer, tmp_path / "m.gguf", "f32")
    assert GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.eos_token_id"] == 7


@pytest.mark.parametrize("kind", ["llama-bpe", "gpt-2", "sentencepiece", "gemma"])
@pytest.mark.parametrize("around", ["nothing", "bos", "bos and eos"])
def test_what_stands_around_a_text_survives_import(
    kind: str, around: str, tmp_path: Path, corpus: list[str]
) -> None:
    """A named bos is not enough, and transformers on an imported directory puts what it put before
    the export."""
    made = {"sentencepiece": lambda: sentencepiece(corpus, True), "gemma": lambda: gemma(corpus)}
    tokenizer = made.get(kind, lambda: byte_level(corpus, kind))()
    bos, eos = tokenizer.special_names["bos_token"], tokenizer.special_names["eos_token"]
    assert bos and eos and tokenizer.bos_id is not None and tokenizer.eos_id is not None
    if around != "nothing":
        tokenizer.backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A", eos] if "eos" in around else [bos, "$A"],
            special_tokens=[(bos, tokenizer.bos_id), (eos, tokenizer.eos_id)],
        )
    tokenizer.save_pretrained(tmp_path / "hf")
    meta = metadata(tokenizer, tmp_path)
    assert meta["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert meta["tokenizer.ggml.add_bos_token"] is (around != "nothing")
    again = read_tokenizer(tmp_path / "m.gguf")
    assert again.special_names == tokenizer.special_names
    again.save_pretrained(tmp_path / "imported")
    before, after = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("hf", "imported")
    )
    for text in ("Hi there", ""):
        assert after(text).input_ids == before(text).input_ids
    assert (tokenizer.bos_id in after("Hi").input_ids) is (around != "nothing")


def test_named_templates_and_names_of_fillers(tmp_path: Path, corpus: list[str]) -> None:
    backend = byte_level(corpus, "gpt-2").backend
    rows = backend.get_vocab_size() + 1
    backend.add_tokens(
        [AddedToken(f"[PAD{rows}]", normalized=False)]
    )  # what the filler of a later row is called
    tokenizer = Tokenizer(
        backend, eos_token="<|im_end|>", named_templates={"tool_use": "{{ tools }}"}
    )
    tokens = metadata(tokenizer, tmp_path)["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens)  # llama.cpp aborts where a text is there twice
    again = read_tokenizer(tmp_path / "m.gguf")
    assert again.named_templates == {"tool_use": "{{ tools }}"}
    assert again.vocab_size == tokenizer.vocab_size
