"""GGUF out and in again, for every architecture; transformers' own reader is the independent judge
where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.hub.gguf.names import gguf_arch_of
from lit_llm.models.hub.gguf.read import load_gguf
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer, begin_with
from lit_llm.models.transformer import Transformer

TEXT = "It's  1,234 naïve 日本語\n\n\tx = <|im_end|> 🙂"
_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
                          "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
_GQA = {**_SHAPE, "num_key_value_heads": 2}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16, "rope_theta": 500.0}  # fmt: skip
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}
_GEMMA = {**_GQA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7}
# Name of the GGUF architecture first, then Hugging Face's family and shape
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama 2": ("llama", "llama", _SHAPE),
    "Llama, tied, wide heads": (
        "llama", "llama", {**_GQA, "head_dim": 32, "tie_word_embeddings": True}
    ),
    "Llama 3.1": ("llama", "llama", {**_GQA, "rope_parameters": _LLAMA3}),
    "Llama, linear": ("llama", "llama", {**_GQA, "rope_parameters": _LINEAR}),
    "Mistral": ("llama", "mistral", {**_GQA, "sliding_window": None}),
    "Mixtral": ("llama", "mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen2.5": ("qwen2", "qwen2", {**_GQA, "tie_word_embeddings": True}),
    "Qwen3, yarn": ("qwen3", "qwen3", {**_GQA, "head_dim": 32, "rope_parameters": _YARN}),
    "Qwen3-MoE": ("qwen3moe", "qwen3_moe",
                  {**_GQA, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
                   "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "Gemma 2": ("gemma2", "gemma2", _GEMMA),
    "Gemma 3": ("gemma3", "gemma3_text", {**_GEMMA, "num_hidden_layers": 6}),
    "Phi-3": ("phi3", "phi3", {**_GQA, "pad_token_id": 0}),
    "GPT-2": ("gpt2", "gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "Pythia": ("gptneox", "gpt_neox", {**_SHAPE, "rotary_pct": 0.5}),
    "OLMo 2": ("olmo2", "olmo2", {**_GQA, "pad_token_id": 0}),
    "StableLM 2": ("stablelm", "stablelm",
                   {**_GQA, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "StableLM 2 12B": ("stablelm", "stablelm",
                       {**_GQA, "use_parallel_residual": True, "qk_layernorm": True,
                        "partial_rotary_factor": 0.5}),
    "SmolLM3": ("smollm3", "smollm3", {**_GQA, "pad_token_id": 0}),
    "Granite": ("granite", "granite", {**_GQA, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                                       "residual_multiplier": 0.22, "attention_multiplier": 0.125}),
    "Command-R": ("command-r", "cohere", {**_GQA, "logit_scale": 0.25, "pad_token_id": 0}),
}  # fmt: skip
# Architectures of GGUF that transformers does not read; of StableLM 12B it leaves out the norms of
# single heads
UNREAD = {"Mixtral", "Pythia", "OLMo 2", "SmolLM3", "Granite", "Command-R", "StableLM 2 12B"}
# Of those it reads, it takes the metadata whole for these; of others it drops scaling, windows or
# widths of heads
READ_WHOLE = {"Llama 2", "Llama, tied, wide heads", "Mistral", "Qwen2.5"}


@pytest.fixture(scope="module")
def tokenizer(text_folder: Path) -> Tokenizer:
    return Tokenizer.train(
        [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:10]], 600
    )


def random_model(name: str, tokenizer: Tokenizer, folder: Path) -> tuple[Any, Transformer]:
    """A random transformers model and ours of the same weights."""
    _, family, fields = CONFIGS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 0, **fields},
    )
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for key, p in theirs.named_parameters():  # away from 0 and 1, or dropping them would not show
        torch.nn.init.normal_(
            p, 1.0 if ("norm" in key or "ln_" in key) and "bias" not in key else 0.0, 0.15
        )
    theirs.save_pretrained(folder)
    return theirs, Transformer.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_out_and_in_is_the_same_model(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs, ours = random_model(name, tokenizer, tmp_path / "hf")
    file = tmp_path / "model.gguf"
    write_gguf(ours, tokenizer, file, "f32")
    assert GGUFFile(file).metadata["general.architecture"] == CONFIGS[name][0]
    again, its_tokenizer = load_gguf(file)
    expected = TransformerConfig.from_dict(
        {**ours.config.to_dict(), "bos_token_id": 0, "eos_token_id": 0,
         "pad_token_id": tokenizer.pad_id, "router_aux_loss": 0.0, "family": again.config.family}
    )  # fmt: skip
    assert again.config == expected
    assert (
        again.config.family == CONFIGS[name][1] or name == "Mistral"
    )  # without a window it is a Llama
    for (key, a), b in zip(ours.named_parameters(), again.parameters(), strict=True):
        # Gemma's gains are stored as 1 + weight, which rounds
        torch.testing.assert_close(
            b, a, atol=2e-7 if ours.config.norm_offset else 0, rtol=0, msg=key
        )
    assert its_tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    if name in UNREAD:
        return
    ids = torch.randint(
        0, tokenizer.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1)
    )
    config = None if name in READ_WHOLE else theirs.config
    judged = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, config=config, attn_implementation="eager"
    )
    torch.testing.assert_close(judged(ids).logits, ours(ids), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("quantization", "largest"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.5625 / 127)]
)
def test_rounding_is_that_of_the_type(
    quantization: Any, largest: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, ours = random_model("Mixtral", tokenizer, tmp_path / "hf")
    write_gguf(ours, tokenizer, tmp_path / "m.gguf", quantization)
    kinds = {name: info.kind for name, info in GGUFFile(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_up_exps.weight"] == quantization.upper()
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    again, _ = load_gguf(tmp_path / "m.gguf")
    for (name, a), b in zip(ours.named_parameters(), again.parameters(), strict=True):
        # of a value for floats; of the largest in a block of 32 of its row for Q8_0 (whose scale is
        # a float16)
        error = (a - b).abs()
        unit = a.abs() if quantization != "q8_0" else a.abs().amax(-1, keepdim=True)
        assert (error <= unit * largest * 1.01 + 1e-7).all(), name
        assert error.any() == (a.ndim > 1 and "router" not in name), name


def test_rows_that_are_no_whole_blocks_stay_16_bits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=48, num_layers=1, num_heads=4
    )
    write_gguf(Transformer(config), tokenizer, tmp_path / "m.gguf", "q8_0")
    kinds = {name: info.kind for name, info in GGUFFile(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.ffn_up.weight"] == "F16" and kinds["blk.0.ffn_down.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp": "relu2"}, "mlp='relu2'"),
        ({"sliding_window": 8}, "sliding_window=8"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "RoPE scaling of type 'dynamic'",
        ),
        (
            {"rope_scaling": {**_LLAMA3, "low_freq_factor": 2.0}},
            "factors of Llama 3's RoPE scaling",
        ),
        ({"nope_layers": [0]}, "nope_layers"),
        ({"qk_norm": "after_rope"}, "qk_norm='after_rope'"),
        ({"residual_scale": 0.5, "norm": "layernorm"}, "residual_scale=0.5"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    fields: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if "rope_scaling" in fields:
        fields["rope_scaling"].pop("rope_theta", None)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=4, **fields
    )
    with pytest.raises(UserError, match=f"no GGUF architecture expresses this model: .*{message}"):
        write_gguf(Transformer(config), tokenizer, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_no_other_architecture_is_taken_where_the_own_will_not_do() -> None:
    """A phi3 file could say Mistral's window, but llama.cpp leaves the window of such files out."""
    assert gguf_arch_of(TransformerConfig(qk_norm="before_rope")) == "qwen3"
    with pytest.raises(UserError, match="llama cannot express sliding_window=9"):
        gguf_arch_of(TransformerConfig(family="mistral", sliding_window=9))


def bpe_like(text: str, pre_tokenizer: Any, decoder: Any, **options: Any) -> Backend:
    from tokenizers import trainers

    backend = Backend(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"], show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([text], trainer)
    return backend


@pytest.fixture(scope="module")
def text(text_folder: Path) -> str:
    return "\n".join(
        file.read_text(errors="ignore")[:8000] for file in sorted(text_folder.iterdir())[:6]
    )


def sentencepiece_like(text: str) -> Tokenizer:
    """Llama 2's kind: bytes to fall back on, a mark for a space, one score a token; a merge for
    each way to make it."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    characters = sorted({c for c in text if c.isascii() and not c.isspace()} | {"\u2581"})
    words = sorted({"\u2581" + word for word in text.split() if word.isascii() and word.isalpha()})[
        :60
    ]
    pieces = list(
        dict.fromkeys(word[:end] for end in (2, 3, 4, 5, 6) for word in words if len(word) >= end)
    )
    for piece in characters + pieces:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [(p[:cut], p[cut:]) for p in pieces for cut in range(1, len(p))
              if p[:cut] in vocabulary and p[cut:] in vocabulary]  # fmt: skip
    backend = Backend(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    begin_with(backend, "<s>")
    return Tokenizer(backend, bos_token="<s>", eos_token="</s>", chat_template="{{ messages }}")


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama"])
def test_tokenizers_of_each_kind(kind: str, text: str, tmp_path: Path) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "llama":
        tokenizer = sentencepiece_like(text)
    else:
        digits = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        )
        backend = bpe_like(text, byte_level if kind == "gpt-2" else digits, decoders.ByteLevel())
        tokenizer = Tokenizer(backend, eos_token="<|endoftext|>", chat_template="{{ messages }}")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size + 7, hidden_size=32, num_layers=1, num_heads=2
    )
    write_gguf(
        Transformer(config), tokenizer, tmp_path / "m.gguf", "f32"
    )  # rows beyond the tokenizer's
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert kind in (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    assert metadata["tokenizer.ggml.add_bos_token"] is (kind == "llama")
    again = Tokenizer.from_pretrained(tmp_path / "m.gguf")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert (
        again.special_names == tokenizer.special_names
        and again.chat_template == tokenizer.chat_template
    )
    assert again.vocab_size == tokenizer.vocab_size
    for sample in (text[:3000], TEXT, " leading", "double  space", "9 87 654", "naïve\u2581 \x00"):
        ids = tokenizer.encode(sample)
        assert again.encode(sample) == ids and again.decode(ids) == tokenizer.decode(ids)
        # transformers takes GPT-2's split for every byte-level file, and puts no mark before a text
        # that begins with a space, where SentencePiece and llama.cpp do
        if kind == "gpt-2" or (kind == "llama" and not sample.startswith(" ")):
            assert theirs.encode(sample, add_special_tokens=False) == tokenizer.encode(
                sample, allow_special=True
            )


def test_tokenizers_that_gguf_cannot_name(text: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = Tokenizer(bpe_like(text, pre_tokenizers.Whitespace(), decoders.ByteLevel()))
    too_many = TransformerConfig(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2)
    large = TransformerConfig(vocab_size=600, hidden_size=32, num_layers=1, num_heads=2)
    for config, chosen, message in (
        (large, words, "no name for how this tokenizer splits text"),
        (too_many, tokenizer, "the tokenizer has 600 tokens and the model 300"),
        (large, Tokenizer(Backend(models.WordLevel({"a": 0}))), "kind WordLevel cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            write_gguf(Transformer(config), chosen, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.iterdir())
