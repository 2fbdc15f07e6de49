"""Value embeddings, smear, embedding mix and back-out in two processes: sharded, or cut by tensor
parallelism, they compute and train as in one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lit_llm import Transformer, TransformerConfig
from lit_llm.models.attention import KVCache
from lit_llm.models.meta import meta_transformer
from lit_llm.models.parallel import parallelize as parallel
from lit_llm.models.parallel.sharded import local, whole
from lit_llm.training import optimizers
from tests.processes import run_processes

CONFIG = TransformerConfig(
    vocab_size=37, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, max_seq_len=16,
    embedding_norm=True, qk_norm="after_rope", norm_weight=False, value_embeddings=[0, 2],
    value_gate_channels=12, smear_channels=24, embedding_mix=True, backout_layer=1,
    bigram_rows=30, exclusive_attention=True,
)  # fmt: skip
STEPS = 4


def _enter(rank: int, check: Callable[[], None], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        check()
    finally:
        dist.destroy_process_group()


def _mean_loss(model: Transformer, rows: torch.Tensor) -> torch.Tensor:
    return model.loss(rows[:, :-1], rows[:, 1:]) / rows[:, 1:].numel()


def _train(model: Transformer, rows: torch.Tensor, processes: int) -> list[float]:
    """Losses of the steps: each process has its own ``rows``."""
    groups = optimizers.parameter_groups(model, "muon_adamw", 0.01, 0.0)
    optimizer = optimizers.MuonAdamW(groups)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = _mean_loss(model, rows)
        loss.backward()
        optimizer.step()
        total = loss.detach()
        if processes > 1:
            dist.all_reduce(total)
        losses.append(total.item() / processes)
    return losses


def _equals_one(data: int, tensor: int) -> None:
    optimizers.has_fast_bf16 = lambda device: False  # bfloat16 products amplify the last bit
    rows = torch.randint(0, 37, (4, 17))
    mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=(parallel.DATA, parallel.TENSOR))
    torch.manual_seed(3)
    one = Transformer(CONFIG)
    torch.manual_seed(3)
    two = meta_transformer(CONFIG)
    parallel.parallelize(two, mesh=mesh, activation_checkpointing=0.5)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(whole(b), a), name
    table = local(two.value_embeds["0"].weight)
    assert table.numel() < one.value_embeds["0"].weight.numel()
    mine = rows if data == 1 else rows[2 * dist.get_rank() :][:2]
    for model, its_rows in ((one, rows), (two, mine)):
        _mean_loss(model, its_rows).backward()
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(whole(b.grad), a.grad, msg=name, rtol=1e-4, atol=1e-6)
    expected = _train(one, rows, 1)
    assert _train(two, mine, data) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    if tensor > 1:  # the cache of a process holds its own heads
        heads = two.layers[0].attention.num_kv_heads
        cache = KVCache(CONFIG, 4, 16, torch.device("cpu"), torch.float32, heads)
        parts = [two(piece, cache=cache) for piece in rows[:, :16].split(5, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), one(rows[:, :16]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("data", "tensor"), [(2, 1), (1, 2)], ids=["sharded", "cut"])
def test_two_processes_equal_one(tmp_path: Path, data: int, tensor: int) -> None:
    check = partial(_equals_one, data, tensor)
    run_processes(_enter, (check, str(tmp_path / "rendezvous")), 2)
