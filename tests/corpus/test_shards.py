from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litdata import StreamingDataset, TokensLoader

from lit_llm.corpus.output import shards
from lit_llm.corpus.output.shards import ShardWriter, check_shards, read_tokens, token_dtype
from lit_llm.errors import UserError


def write(folder: Path, documents: list[list[int]], dtype: np.dtype) -> np.ndarray:
    writer = ShardWriter(folder, dtype)
    for document in documents:
        writer.append(np.array([0, *document], dtype=np.int32))
    writer.close()
    return np.array([token for document in documents for token in [0, *document]])


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 70_000), max_size=40), min_size=1, max_size=12),
    chunk_tokens=st.integers(4, 30),
    wide=st.booleans(),
)
def test_the_stream_reads_back_whatever_the_chunks(
    tmp_path_factory, documents, chunk_tokens, wide
) -> None:
    dtype = token_dtype(70_001 if wide else 65_536)
    documents = (
        documents if wide else [[token % 65_536 for token in document] for document in documents]
    )
    folder = tmp_path_factory.mktemp("shards") / "source"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_TOKENS", chunk_tokens)
        stream = write(folder, documents, dtype)
    assert check_shards(folder) == len(stream)
    found = read_tokens(folder)
    assert found.dtype == dtype and found.tolist() == stream.tolist()
    sizes = [(file.stat().st_size - 12) // dtype.itemsize for file in folder.glob("*.bin")]
    assert sorted(sizes)[1:] == [chunk_tokens] * (len(sizes) - 1)  # all full but one


@pytest.mark.parametrize("vocab_size", [65_536, 65_537])
@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_litdata_reads_blocks_of_any_size(
    tmp_path: Path, monkeypatch, vocab_size: int, block_size: int
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 16)
    folder = tmp_path / "source"
    stream = write(
        folder, [list(range(1, 20)), [vocab_size - 1] * 20, [5]], token_dtype(vocab_size)
    )
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size))
    chunks = [stream[begin : begin + 16] for begin in range(0, len(stream), 16)]
    blocks = [
        chunk[i : i + block_size]
        for chunk in chunks
        for i in range(0, len(chunk) - block_size + 1, block_size)
    ]
    assert len(dataset) == len(blocks)
    for index in reversed(range(len(blocks))):
        assert dataset[index].tolist() == blocks[index].tolist()


def test_more_chunks_than_a_process_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 4)
    stream = write(tmp_path / "source", [list(range(800))], token_dtype(800))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, allowed[1]))
    try:
        assert read_tokens(tmp_path / "source").tolist() == stream.tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)


def test_equal_streams_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [[1, 2, 3], [4]], token_dtype(10))
    write(tmp_path / "c", [[1, 2, 3], [5]], token_dtype(10))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "chunk-0-0.bin").unlink(), r"chunk-0-0\.bin: missing"),
        (
            lambda folder: (folder / "chunk-0-0.bin").write_bytes(b"short"),
            r"chunk-0-0\.bin: 5 bytes, should be 20",
        ),
        (
            lambda folder: (folder / "index.json").write_text('{"chunks"'),
            r"index\.json: missing or broken",
        ),
        (lambda folder: (folder / "index.json").unlink(), r"index\.json: missing or broken"),
    ],
)
def test_damage_is_seen_and_named(tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "source"
    write(folder, [[1, 2, 3]], token_dtype(10))
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_shards(folder)
