"""Attacks on checkpoints: whatever the bytes, a file loads or a UserError names it; no crash or
hang."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.hub.gguf.container import GGUFFile
from lit_llm.models.hub.gguf.read import load_gguf
from lit_llm.models.hub.gguf.write import write_gguf
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

_FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Bytes of address space that a broken file may take beyond what is taken before; threads that start
# now take some too.
_MEMORY = 3 * 2**30 + (os.cpu_count() or 1) * 2**27


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole directory, and model.gguf in it."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    tokenizer = Tokenizer.train(
        ["user asked the assistant: what is a café in 北京? 🙂 system said hello\n" * 8], 300
    )
    config = TransformerConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=32,
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    )  # fmt: skip
    model = Transformer(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(model, tokenizer, folder / "model.gguf", "q8_0")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def little_memory() -> Iterator[None]:
    """A giant allocation fails instead of filling the machine: MemoryError is no UserError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def shard(folder: Path) -> dict[str, Any]:
    """Cut model.safetensors in two with an index; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_safetensors_cut_short(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(copy, f"{file}: not a whole file of weights")
    file.unlink()
    refused(copy, f"{file}: no such file")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "model.gguf"])
def test_pointers_of_git_lfs(copy: Path, name: str) -> None:
    file = copy / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99999\n")
    refused(file if name == "model.gguf" else copy, f"{file}: a pointer of Git LFS, not the file")


def test_shards(copy: Path) -> None:
    index_file = copy / "model.safetensors.index.json"
    index = shard(copy)
    load_model(copy)  # whole
    name, file = next(iter(index["weight_map"].items()))
    (copy / file).rename(copy / "elsewhere")
    refused(copy, f"{file}: no such file; model.safetensors.index.json says that it holds {name}")
    (copy / "elsewhere").rename(copy / file)
    for weight_map in (None, [], {"a": 1}):
        index_file.write_text(json.dumps({"weight_map": weight_map}))
        refused(copy, f"{index_file}: has no weight_map")
    index_file.write_text(
        json.dumps({"weight_map": {"a": "../model/" + file}})
    )  # stays inside the folder
    refused(copy, "no such file")
    index_file.write_text("{")
    refused(copy, f"{index_file}: not readable as JSON")


def test_tensors_that_do_not_fit(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file)
    refused(copy, rf"{copy}: tensor {name} has shape \(95, 32\), config.json says \(96, 32\)")
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    refused(copy, f"tensors missing: {name}")
    save_file({**tensors, "model.strange": tensors[name].clone()}, file)
    refused(copy, "unknown tensors: model.strange")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"model_type": []}', '{"model_type": "llama", "hidden_size": '
                                                        '"wide"}',
     '{"model_type": "llama", "num_hidden_layers": -1}', '{"model_type": "llama", "rope_scaling": '
                                                         '3}',
     '{"model_type": "llama", "rms_norm_eps": {}}', '{"model_type": "llama", '
                                                    '"num_attention_heads": 0}',
     '{"model_type": "llama", "vocab_size": 1.5}', '{"model_type": "gemma2", "num_hidden_layers": '
                                                   '1099511627776}',
     '{"model_type": "mixtral", "num_local_experts": 1099511627776}'],
)  # fmt: skip
def test_configs(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refused(copy, str(copy / "config.json"))


def test_tokenizer_of_another_model(copy: Path, tmp_path: Path) -> None:
    other = Tokenizer.train(
        ["many different words make many pairs " * 4 + "abcdefghij klmnopqrst uvwxyz " * 4], 310
    )
    other.save_pretrained(copy)
    refused(copy, "the model has 300 tokens, the tokenizer found for it 310")
    model, _ = load_gguf(copy / "model.gguf")
    with pytest.raises(UserError, match="the tokenizer has 310 tokens and the model 300"):
        write_gguf(model, other, tmp_path / "m.gguf", "f16")


def test_gguf(copy: Path) -> None:
    file = copy / "model.gguf"
    whole = file.read_bytes()
    begin = GGUFFile(file).tensors["blk.1.ffn_up.weight"].begin
    assert begin > 0

    def tensor_info(name: bytes) -> int:
        return whole.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)

    up = tensor_info(b"blk.1.ffn_up.weight")
    kind_at = up + 4 + 2 * 8  # after rank and two sizes
    changes: list[tuple[bytes, str]] = [
        (b"GGML" + whole[4:], "does not begin with the letters GGUF"),
        (whole[:4] + struct.pack("<I", 9) + whole[8:], "GGUF version 9 is not known"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "not known; 2 and 3"),
        (whole[:8] + struct.pack("<Q", 2**60) + whole[16:], r"it claims \d+ tensors"),
        (whole[:16] + struct.pack("<Q", 2**60) + whole[24:], r"it claims \d+ tensors and \d+ keys"),
        (
            whole[:kind_at] + struct.pack("<I", 99) + whole[kind_at + 4 :],
            "blk.1.ffn_up.weight has the unknown type 99",
        ),
        (
            whole[:kind_at] + struct.pack("<I", 24) + whole[kind_at + 4 :],
            "blk.1.ffn_up.weight has type I8",
        ),
        (whole[: up + 4] + struct.pack("<Q", 64) + whole[up + 12 :], r"blk.1.ffn_up.weight"),
        (
            whole[: up + 4] + struct.pack("<Q", 2**62) + whole[up + 12 :],
            "tensor blk.1.ffn_up.weight ends at byte",
        ),
        (
            whole[: kind_at + 4] + struct.pack("<Q", 2**63) + whole[kind_at + 12 :],
            "tensor blk.1.ffn_up.weight ends",
        ),
        (
            whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"),
            "tensor blk.1.ffn_up.weight is missing",
        ),
        (
            whole.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"),
            "tensor blk.0.ffn_up.weight occurs twice",
        ),
        (whole.replace(b"llama.block_count", b"llama.block_xxxxx"), "lacks llama.block_count"),
        (
            whole.replace(b"rope_freqs.weight", b"rope_freqz.weight"),
            "unknown tensors: rope_freqz.weight",
        ),
        (b"", "it is empty"),
    ]
    for content, message in changes:
        assert content != whole
        file.write_bytes(content)
        refused(file, f"{file}: .*{message}")
    for size in (3, 4, 20, 24, 100, begin - 1, begin + 1, len(whole) - 40):
        file.write_bytes(whole[:size])
        refused(file, str(file))


def attempt(path: Path) -> None:
    try:
        model, _ = load_model(path)
    except UserError as error:
        assert str(path) in str(error) or str(path.parent) in str(error)
    else:
        assert all(p.device.type == "cpu" for p in model.parameters())


_LENGTHS = st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
_EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
)


def mutated(data: st.DataObject, whole: bytes, header: int) -> bytes:
    """``whole`` with bytes flipped, a length planted or its end cut, all within its first
    ``header`` bytes."""
    out = bytearray(whole)
    what = data.draw(st.sampled_from(["flip", "length", "cut"]))
    if what == "flip":
        for place, flip in data.draw(_EDITS):
            out[int(place * header)] ^= flip
    elif what == "length":
        at = data.draw(st.integers(0, header - 8))
        out[at : at + 8] = struct.pack("<Q", data.draw(_LENGTHS))
    else:
        del out[data.draw(st.integers(0, header)) :]
    return bytes(out)


@pytest.fixture(scope="module")
def arena(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("fuzz") / "model"))


@pytest.mark.usefixtures("little_memory")
@_FUZZ
@given(data=st.data())
def test_any_safetensors_header(data: st.DataObject, folder: Path, arena: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    (arena / "model.safetensors").write_bytes(mutated(data, whole, header))
    attempt(arena)


@pytest.mark.usefixtures("little_memory")
@_FUZZ
@given(data=st.data(), beginning=st.booleans())
def test_any_gguf_header(data: st.DataObject, beginning: bool, folder: Path, arena: Path) -> None:
    whole = (folder / "model.gguf").read_bytes()
    header = min(info.begin for info in GGUFFile(folder / "model.gguf").tensors.values())
    (arena / "model.gguf").write_bytes(
        mutated(data, whole, 700 if beginning else header)
    )  # most keys are at the start
    attempt(arena / "model.gguf")


@pytest.mark.usefixtures("little_memory")
@_FUZZ
@given(
    key=st.sampled_from(["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                         "rope_parameters", "head_dim", "rms_norm_eps", "model_type",
                         "max_position_embeddings", "tie_word_embeddings"]),
    value=st.one_of(st.none(), st.booleans(), st.integers(-3, 2**40), st.floats(),
                    st.text(max_size=3), st.lists(st.integers(), max_size=2),
                    st.dictionaries(st.text(max_size=3), st.integers())),
)  # fmt: skip
def test_any_value_in_a_config(key: str, value: Any, folder: Path, arena: Path) -> None:
    (arena / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (arena / "config.json").write_text(json.dumps(config | {key: value}))
    try:
        attempt(arena)
    finally:
        (arena / "config.json").write_text(json.dumps(config))


def test_the_judge_itself(copy: Path) -> None:
    """What `attempt` lets through is a model that computes."""
    attempt(copy)
    model, _ = load_model(copy)
    assert model(torch.arange(9)[None]).isfinite().all()
