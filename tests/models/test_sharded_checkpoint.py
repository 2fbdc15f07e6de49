"""The folder that a sharded checkpoint is: what was divided comes back, however it is asked for,
or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from lit_llm.errors import UserError
from lit_llm.io.atomic import part_of
from lit_llm.models.parallel import sharded_checkpoint as parts
from lit_llm.models.parallel.sharded_checkpoint import (
    MARK,
    Divided,
    Shard,
    commit,
    damage_of_shards,
    open_shards,
    read_shards,
    write_share,
)


def boxes(tensor: Tensor, rows: int, columns: int) -> list[Shard]:
    """``tensor`` cut into so many rows and columns, as chunks are: the last ones smaller, or not
    there."""
    found, top = [], 0
    for strip in tensor.chunk(rows, 0):
        left = 0
        for box in strip.chunk(columns, 1):
            found.append(Shard(box, (top, left), tuple(tensor.shape)))
            left += box.shape[1]
        top += strip.shape[0]
    return found


def save(
    target: Path, tensors: dict[str, Tensor], processes: tuple[int, int] = (2, 2), **rest: Any
) -> None:
    """What so many rows and columns of processes would write."""
    files, folder = {}, part_of(target)
    shares: list[dict[str, Shard]] = [{} for _ in range(processes[0] * processes[1])]
    for name, tensor in tensors.items():
        for share, part in zip(shares, boxes(tensor, *processes), strict=False):
            share[name] = part
    for rank, share in enumerate(shares):
        marked = {"state_dict": {name: MARK + name for name in tensors}, **rest}
        files |= write_share(Divided(share, marked if rank == 0 else None), folder, rank)
    commit(folder, target, files)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    processes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dtype=st.sampled_from(
        [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    ),
    data=st.data(),
)
def test_any_box_of_it_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], processes: tuple[int, int],
    dtype: torch.dtype, data: st.DataObject,
) -> None:  # fmt: skip
    target = tmp_path_factory.mktemp("parts") / "x.ckpt"
    tensor = (torch.rand(shape) * 100).to(dtype)
    save(target, {"a": tensor}, processes)
    assert damage_of_shards(target) is None
    stored = open_shards(target)["state_dict"]["a"]
    assert (stored.shape, stored.dtype, stored.numel(), stored.ndim) == (
        tensor.shape,
        dtype,
        tensor.numel(),
        2,
    )
    assert torch.equal(stored[...], tensor)
    index = tuple(
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
    )
    assert torch.equal(stored[index], tensor[index])


def test_the_rest_and_what_is_shared(tmp_path: Path) -> None:
    tied = torch.rand(3, 4)
    head = {"head": MARK + "tied", "said": "a tensor", "numbers": (1, {"step": torch.tensor(2.0)})}
    save(tmp_path / "x.ckpt", {"tied": tied}, more=head)
    read = read_shards(tmp_path / "x.ckpt")
    assert torch.equal(read["state_dict"]["tied"], tied)
    assert read["more"]["head"] is read["state_dict"]["tied"]
    assert read["more"]["said"] == "a tensor" and read["more"]["numbers"] == (
        1,
        {"step": torch.tensor(2.0)},
    )


def test_torchs_distributed_checkpoint_reads_it(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(5, 7), "b.weight": torch.rand(4, 2).bfloat16()}
    save(tmp_path / "x.ckpt", tensors)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / "x.ckpt")), no_dist=True)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_every_harm_is_seen_and_named(tmp_path: Path) -> None:
    target, tensors = tmp_path / "x.ckpt", {"a": torch.rand(6, 6)}
    for file in ("part-00002.safetensors", "rest.pt", "manifest.json"):
        for harm in ("flipped", "truncated", "empty", "missing"):
            save(target, tensors)
            content = bytearray((target / file).read_bytes())
            content[len(content) // 2] ^= 1
            if harm == "missing":
                (target / file).unlink()
            else:
                (target / file).write_bytes(
                    {"flipped": content, "truncated": content[: len(content) // 2], "empty": b""}[
                        harm
                    ]
                )
            said = damage_of_shards(target)
            # Of a flipped bit in the manifest, the file whose checksum it was is named.
            assert said is not None and (
                file in said or (file, harm) == ("manifest.json", "flipped")
            ), (file, harm)
            if harm in ("empty", "missing"):
                with pytest.raises(UserError, match=r"x\.ckpt: not a whole checkpoint"):
                    open_shards(target)


def test_parts_that_do_not_make_up_the_whole_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "x.ckpt"
    for forgotten, said in (
        ({"part-00001.safetensors"}, "shards of a do not make up"),
        (None, "no part of 'b'"),
    ):
        save(target, {"a": torch.rand(6, 6)}, also=MARK + ("a" if forgotten else "b"))
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"] = {
            name: at for name, at in manifest["files"].items() if name not in (forgotten or ())
        }
        (target / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=said):
            open_shards(target)


def test_nothing_in_it_can_run_code(tmp_path: Path) -> None:
    save(tmp_path / "x.ckpt", {"a": torch.rand(2, 2)}, evil=_Evil())
    with pytest.raises(UserError, match="not a whole checkpoint"):
        open_shards(tmp_path / "x.ckpt")


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_a_checkpoint_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "best.ckpt"
    for value in (1.0, 2.0):
        save(target, {"a": torch.full((2, 2), value)})
        assert read_shards(target)["state_dict"]["a"][0, 0] == value
    file = tmp_path / "file.part"
    file.write_bytes(b"a file")
    parts.put(file, target)
    assert target.read_bytes() == b"a file"
    save(target, {"a": torch.rand(2, 2)})
    assert damage_of_shards(target) is None and [f.name for f in tmp_path.iterdir()] == [
        "best.ckpt"
    ]
