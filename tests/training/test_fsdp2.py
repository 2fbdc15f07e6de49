"""FSDP2Strategy: sharded and cut models train as whole ones do, and go on from each other's
checkpoints."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lit_llm import LoRAConfig, MuonAdamW, PretrainModule, Transformer, TransformerConfig, UserError
from lit_llm.models.float8 import convert_to_float8
from lit_llm.models.lora import apply_lora
from lit_llm.models.meta import meta_transformer
from lit_llm.models.parallel import parallelize as parallel
from lit_llm.models.parallel.sharded import (
    WholeDraws,
    clip_gradients,
    copy_part,
    like_part,
    total_norm,
    whole,
    whole_state_dict,
)
from lit_llm.training import optimizers
from tests.processes import run_processes

STEPS = 20
TP = (
    "--trainer.strategy.class_path",
    "lit_llm.FSDP2Strategy",
    "--trainer.strategy.init_args.tensor_parallel_size",
)


@pytest.fixture(scope="module")
def train(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, lit_llm_command: Callable
) -> Callable:
    """Train for 20 steps of 8 samples; returns the folder."""
    root = tmp_path_factory.mktemp("fsdp2")

    def run(name: str, ranks: int, micro_batch_size: int, *extra: object) -> Path:
        done = lit_llm_command(
            "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
            "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 2, "num_heads": 4}),
            "--model.optimizer", "adamw", "--model.learning_rate", 2e-3, "--data.corpus", corpus,
            "--data.seq_len", 32, "--data.micro_batch_size", micro_batch_size,
            "--data.global_batch_tokens", 32 * 8, "--data.tokens", 32 * 8 * STEPS,
            "--data.validate_every", 5, "--data.eval_batch_size", 64, "--trainer.log_every_n_steps",
            1, "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
            "--trainer.devices", ranks, "--checkpoint.every_steps", 5, "--samples.max_new_tokens",
            2, "--trainer.default_root_dir", root / name, *extra, cwd=root,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return root / name

    return run


@pytest.fixture(scope="module")
def one(train: Callable) -> Path:
    """The run of a single process."""
    return train("one", 1, 8)


def check_same(folder: Path, other: Path, rel: float = 1e-5) -> None:
    rows = []
    for run in (folder, other):
        with open(run / "metrics.csv") as file:
            rows.append(list(csv.DictReader(file)))
    assert [row["step"] for row in rows[0]] == [str(step) for step in range(1, STEPS + 1)]
    for a, b in zip(*rows, strict=True):
        for key in (
            "step",
            "tokens",
            "train_loss",
            "val_loss",
            "val_bits_per_byte",
            "lr",
            "grad_norm",
        ):
            assert (a[key] == "") == (b[key] == "")
            if a[key]:
                # Adam divides gradients near zero by their own size: their rounding shows in the
                # next norms first.
                assert float(a[key]) == pytest.approx(
                    float(b[key]), rel=1000 * rel if key == "grad_norm" else rel
                ), key
    first, second = (load_file(run / "final" / "model.safetensors") for run in (folder, other))
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)
    assert (folder / "samples.jsonl").read_text().count("\n") == (
        other / "samples.jsonl"
    ).read_text().count("\n")


@pytest.mark.slow
def test_four_sharded_processes_equal_one(train: Callable, one: Path) -> None:
    check_same(train("four", 4, 2, "--trainer.strategy", "fsdp2"), one)


@pytest.mark.slow
def test_two_tensor_parallel_processes_equal_one(train: Callable, one: Path) -> None:
    check_same(train("cut", 2, 4, *TP, 2, "--model.activation_checkpointing", 0.5), one)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(train: Callable, one: Path) -> None:
    """Two, then one, then two again, with another accumulation each time."""
    train("moving", 2, 2, "--trainer.strategy", "fsdp2", "--trainer.max_steps", 10)
    train("moving", 1, 4, "--trainer.max_steps", 15, "--ckpt_path", "last")
    check_same(train("moving", 2, 4, "--trainer.strategy", "fsdp2", "--ckpt_path", "last"), one)


@pytest.mark.slow
def test_sharded_and_cut_at_once(train: Callable, one: Path) -> None:
    check_same(train("both", 4, 4, *TP, 2), one)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon_adamw", "adamw"])
def test_mixed_precision_and_muon_come_close(train: Callable, optimizer: str) -> None:
    settings = ("--trainer.precision", "bf16-mixed", "--model.optimizer", optimizer)
    whole_run = train(f"{optimizer}-one", 1, 8, *settings)
    check_same(
        train(f"{optimizer}-two", 2, 2, "--trainer.strategy", "fsdp2", *settings),
        whole_run,
        rel=1e-2,
    )


@pytest.mark.slow
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, corpus: Path, lit_llm_command: Callable
) -> None:
    for shape, settings, named in (
        ({"num_heads": 4}, (*TP, 3), "data_parallel_size=1 times tensor_parallel_size=3"),
        ({"num_heads": 1}, (*TP, 2), "tensor_parallel_size=2 does not divide num_heads=1"),
    ):
        done = lit_llm_command(
            "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
            "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 1, **shape}),
            "--data.corpus", corpus, "--data.seq_len", 32, "--data.tokens", 1024,
            "--trainer.accelerator", "cpu", "--trainer.devices", 2, *settings,
            "--trainer.default_root_dir", tmp_path / "run", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr[-2000:]
        assert named in done.stderr


def test_a_share_of_blocks_is_a_share() -> None:
    with pytest.raises(UserError, match="activation_checkpointing=2: must be from 0 to 1"):
        PretrainModule(activation_checkpointing=2)


# ---- in two processes of one test
# ---------------------------------------------------------------------------------


def together(check: Callable[[], None], tmp_path: Path) -> None:
    rendezvous = str(tmp_path / "rendezvous")
    run_processes(_enter, (check, rendezvous), 2)


def _enter(rank: int, check: Callable[[], None], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        check()
    finally:
        dist.destroy_process_group()


class Odd(nn.Module):
    """Matrices whose rows do not divide by two, stacks of them, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(torch.randn(5, 6) for _ in range(3))
        self.stack = nn.Parameter(torch.randn(3, 4, 6))
        self.vector = nn.Parameter(torch.randn(7))


def sharded_twin(model: nn.Module) -> nn.Module:
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    return fully_shard(twin, mesh=init_device_mesh("cpu", (2,)))


def set_gradients(model: nn.Module, grads: list[Tensor]) -> None:
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = like_part(p, grad)


def _muon_on_parts() -> None:
    optimizers.has_fast_bf16 = lambda device: False  # bfloat16 products amplify the last bit
    model = Odd()
    twin = sharded_twin(model)

    def make(net: nn.Module) -> MuonAdamW:
        matrices = [p for p in net.parameters() if p.ndim > 1]
        vectors = [p for p in net.parameters() if p.ndim == 1]
        groups = [
            {"params": matrices, "muon": True, "lr": 0.02, "weight_decay": 0.1},
            {"params": vectors},
        ]
        return MuonAdamW(groups)

    first, second = make(model), make(twin)
    for step in range(3):
        grads = [torch.randn_like(p) for p in model.parameters()]
        for net, optimizer in ((model, first), (twin, second)):
            optimizer.found_inf = torch.tensor(1.0 if step == 1 else 0.0)
            set_gradients(net, grads)
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert isinstance(b, DTensor)
        torch.testing.assert_close(a.detach(), whole(b).detach(), rtol=1e-5, atol=1e-6)
        for key, value in first.state[a].items():
            torch.testing.assert_close(whole(second.state[b][key]), value, rtol=1e-5, atol=1e-6)


def test_muon_on_parts_is_muon(tmp_path: Path) -> None:
    together(_muon_on_parts, tmp_path)


def _norms_and_copies() -> None:
    model = Odd()
    twin = sharded_twin(model)
    grads = [torch.randn_like(p) for p in model.parameters()]
    for net in (model, twin):
        set_gradients(net, grads)
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    plain = torch.full((2,), 3.0)  # of no mesh
    both = total_norm([*(p.grad for p in twin.parameters() if p.grad is not None), plain])
    torch.testing.assert_close(both, (expected**2 + 18).sqrt())
    halves = [grad.bfloat16() for grad in grads]
    parts = [like_part(p, half) for p, half in zip(twin.parameters(), halves, strict=True)]
    in_float32 = torch.nn.utils.get_total_norm([half.float() for half in halves])
    torch.testing.assert_close(total_norm(parts), in_float32)
    torch.testing.assert_close(total_norm(halves), in_float32)
    torch.testing.assert_close(clip_gradients(twin.parameters(), 0.5), expected)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(whole(b.grad), a.grad)
        copy_part(b, 2 * a)
    state = whole_state_dict(twin.state_dict().items(), keep=dist.get_rank() == 0)
    assert bool(state) == (dist.get_rank() == 0)
    for name, value in state.items():
        assert torch.equal(value, 2 * model.state_dict()[name])


def test_norms_and_copies_of_parts(tmp_path: Path) -> None:
    together(_norms_and_copies, tmp_path)


def _initial_weights() -> None:
    for tied in (False, True):
        config = TransformerConfig(
            vocab_size=37,
            hidden_size=12,
            num_layers=2,
            num_heads=2,
            max_seq_len=16,
            tie_embeddings=tied,
        )
        torch.manual_seed(3)
        expected = Transformer(config)
        torch.manual_seed(3)
        model = meta_transformer(config)
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=(parallel.DATA, parallel.TENSOR))
        parallel.parallelize(model, mesh=mesh)
        state = model.state_dict()
        assert state.keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert torch.equal(whole(state[name]), value), name
        ids = torch.arange(16).view(1, 16)
        losses = [net.loss(ids, ids) for net in (expected, model)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss in losses:
            loss.backward()
        for (name, a), b in zip(expected.named_parameters(), model.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None
            torch.testing.assert_close(whole(b.grad), a.grad, msg=name)
        with WholeDraws():
            nn.init.normal_(tensor=(plain := torch.empty(4)))
        assert plain.isfinite().all()


def test_parts_start_from_the_weights_of_the_whole(tmp_path: Path) -> None:
    together(_initial_weights, tmp_path)


def _float8() -> None:
    """Two processes, a micro-batch each, against one that takes both: a micro-batch has scales of
    its own anyway."""
    config = TransformerConfig(
        vocab_size=37, hidden_size=32, num_layers=2, num_heads=2, max_seq_len=16
    )
    batch = torch.arange(68).view(2, 2, 17) % 37
    for dtype in (None, torch.bfloat16):
        losses = []
        for mesh in (
            None,
            init_device_mesh("cpu", (2, 1), mesh_dim_names=(parallel.DATA, parallel.TENSOR)),
        ):
            torch.manual_seed(3)
            model = Transformer(config) if mesh is None else meta_transformer(config)
            convert_to_float8(model, smallest=16)
            parallel.parallelize(model, mesh=mesh, dtype=dtype)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            mine = [0, 1] if mesh is None else [dist.get_rank()]
            for _ in range(6):
                total = torch.zeros(())
                for ids in batch[mine]:
                    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                        loss = model.loss(ids[:, :-1], ids[:, 1:]) / 32 / len(mine)
                    loss.backward()
                    total += loss.detach()
                optimizer.step()
                optimizer.zero_grad()
                if mesh is not None:
                    dist.all_reduce(total)
                    total /= 2
                losses.append(total.item())
        assert losses[6:] == pytest.approx(losses[:6], rel=1e-5)
        assert losses[5] < losses[0]
    model = meta_transformer(config)
    convert_to_float8(model, smallest=16)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=(parallel.DATA, parallel.TENSOR))
    with pytest.raises(
        UserError, match="tensor_parallel_size=2: layers in 8 bits cannot be cut yet"
    ):
        parallel.parallelize(model, mesh=mesh)


@pytest.mark.slow
def test_float8_on_parts_is_float8(tmp_path: Path) -> None:
    together(_float8, tmp_path)


def _refused() -> None:
    """Layers of bitsandbytes that a `build_model` might have put in, before and after they are
    packed; and LoRA."""
    import bitsandbytes

    config = TransformerConfig(
        vocab_size=37, hidden_size=32, num_layers=1, num_heads=2, max_seq_len=16
    )
    for shape, layer, packed in (
        ((2, 1), bitsandbytes.nn.LinearNF4, True),
        ((2, 1), bitsandbytes.nn.LinearNF4, False),
        ((2, 1), partial(bitsandbytes.nn.Linear8bitLt, has_fp16_weights=False), False),
        ((1, 2), bitsandbytes.nn.LinearNF4, True),
    ):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=(parallel.DATA, parallel.TENSOR))
        model = Transformer(config)
        up = model.layers[0].mlp.up_proj
        model.layers[0].mlp.up_proj = layer(up.in_features, up.out_features, bias=False)
        if packed:
            model.to("cpu")
            assert model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
        said = (
            r"trainer\.strategy: layers\.0\.mlp\.up_proj\.weight is quantised \(NF4 or 8 bits\), "
            "which cannot be "
        )
        with pytest.raises(UserError, match=said):
            parallel.parallelize(model, mesh=mesh)
    adapted = Transformer(config)
    apply_lora(adapted, LoRAConfig(rank=2))
    with pytest.raises(
        UserError, match="tensor_parallel_size=2: mixtures of experts and LoRA cannot be cut yet"
    ):
        parallel.parallelize(adapted, mesh=mesh)


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    together(_refused, tmp_path)
