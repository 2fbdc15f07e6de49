"""The ordered steps that prepare a newly built model for training.

No step changes the names in a state dict. Changes of layers (LoRA) come before, in ``build_model``.
Then the order is: float8, tensor parallelism, attention kernels, activation checkpointing,
compilation, sharding, weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import attention
from torch.utils.checkpoint import checkpoint

from lit_llm.errors import UserError
from lit_llm.models.float8 import Float8Linear, convert_to_float8
from lit_llm.models.kernels.backends import Backends
from lit_llm.models.kernels.eager import use_onednn
from lit_llm.models.kernels.heap import keep_freed_memory
from lit_llm.models.parallel.cuts import refuse_cut
from lit_llm.models.parallel.sharded import WholeDraws
from lit_llm.models.transformer import Block, Transformer

DATA, TENSOR = "data_parallel", "tensor_parallel"
"""Names of the mesh's dimensions, as in Lightning."""
_BUDGET = 0.99
"""Share of the activations that the compiler keeps by default.

A value slightly below 1 makes the compiler reconsider which operations are cheap to compute again,
but not products.
"""


def parallelize(
    model: Transformer,
    *,
    float8: bool = False,
    backends: Backends | None = None,
    compile: bool = False,
    activation_checkpointing: float = 0.0,
    mesh: DeviceMesh | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Prepare ``model`` in place.

    Args:
        float8: train large linear layers in 8-bit floating point, see `convert_to_float8`. It is
            faster only when compiled, because the compiler fuses the casts with the operations
            before them.
        backends: attention kernels, see `choose_attention`. None: SDPA.
        compile: compile each block, and head and loss together. Blocks of one shape share one
            compiled graph, so start-up costs one block. Compilation in place keeps parameter names.
            Graphs are for the training shapes; evaluation and sampling run eagerly
            (``torch.compiler.set_stance``) instead of compiling for each new shape.
        activation_checkpointing: share of the blocks, spread evenly, that keep only their input
            for the backward pass and are computed again there (arXiv:1604.06174). Saves memory,
            costs up to a third more time.
        mesh: device mesh with the dimensions "data_parallel" and "tensor_parallel". Matrices are
            cut along the second (arXiv:1909.08053), everything is sharded along the first (FSDP2,
            arXiv:2304.11277). A model on the meta device gets the weights that ``init_weights``
            would give a single process with the same seed.
        dtype: of a sharded model's gathered weights and products; gradients are reduced in float32.
            None: the weights' dtype.

    Raises:
        UserError: the model cannot be cut as the mesh requires, or has no layer for float8.
    """
    if float8:
        convert_to_float8(model)
    if mesh is not None and mesh[TENSOR].size() > 1:
        _cut(model, mesh[TENSOR])
    if backends is not None:
        use_backends(model, backends)
    recomputed = _spread(list(model.layers), activation_checkpointing)
    for block in model.layers:
        if block in recomputed:
            # The compiled graph is inside the checkpoint: the compiler makes no graph of a
            # checkpoint around the block.
            forward = (
                torch.compile(block.forward, dynamic=False, backend=_compile_with_budget)
                if compile
                else block.forward
            )
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, forward, use_reentrant=False
            )
        elif compile:
            block.compile(dynamic=False, backend=_compile_with_budget)
    if compile:
        model.lm_head.compile(dynamic=False)
    if mesh is not None:
        tables = [*model.value_embeds.values(), *([model.bigram] if model.bigram else [])]
        shard(model, [*model.layers, *tables], mesh[DATA], dtype)
        for entry in ("loss", "token_losses"):  # training calls these instead of forward
            register_fsdp_forward_method(model, entry)
        if model.embed.weight.is_meta:
            model.to_empty(device=_device(mesh))
            if model.config.tie_embeddings:
                model.head.weight = model.embed.weight
            with WholeDraws():
                model.init_weights()
    if mesh is None or mesh[TENSOR].size() == 1:
        use_onednn(model.layers)
    keep_freed_memory()


def _compile_with_budget(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Compile with torch's default compiler, with a smaller activation budget on a CPU.

    The backward pass then recomputes everything that needs no matrix product: the MLP's hidden
    activations, norms, casts of weights, copies of keys. With a vocabulary of 50k this saves a
    tenth of the memory for about a hundredth of the time (docs/decisions.md, "A training step on a
    CPU"). It is not measured on CUDA.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    if any(t.device.type != "cpu" for t in inputs if isinstance(t, torch.Tensor)):
        return compile_fx(graph, inputs)
    with config.patch(activation_memory_budget=min(_BUDGET, config.activation_memory_budget)):
        return compile_fx(graph, inputs)


def use_backends(model: Transformer, backends: Backends) -> None:
    """Set the attention kernels that ``model`` uses in training.

    FlashAttention 3 replaces torch's flash kernel in the whole process.
    """
    model.backends = backends
    for block in model.layers:
        block.attention.kernel_order = backends.kernel_order  # type: ignore[union-attr]
        block.attention.by_blocks = backends.causal == "blocks"  # type: ignore[union-attr]
    if backends.causal == "flash3":
        attention.activate_flash_attention_impl("FA3")


def shard(
    model: nn.Module, blocks: list[nn.Module], mesh: DeviceMesh, dtype: torch.dtype | None
) -> None:
    """Shard ``model`` with FSDP2 over ``mesh``.

    Each of ``blocks`` is gathered only while it computes; the rest of ``model`` stays gathered.

    Raises:
        UserError: the weights have 4 or 8 bits.
    """
    _refuse_quantized(model)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _refuse_quantized(model: nn.Module) -> None:
    """Refuse quantised weights.

    A part of packed weights has no scales of its own, and FSDP2 does not gather the states beside
    the weights.
    """
    for name, weight in model.named_parameters():
        # bitsandbytes' NF4 and FP4 weights, and its 8-bit weights. They are packed when they move
        # to a device.
        if (
            hasattr(weight, "quant_state")
            or hasattr(weight, "CB")
            or not weight.is_floating_point()
        ):
            raise UserError(
                f"trainer.strategy: {name} is quantised (NF4 or 8 bits), which cannot be sharded "
                "or cut yet; take ddp"
            )


def gradient_sync(model: nn.Module, on: bool) -> None:
    """Set whether the next backward passes reduce a sharded model's gradients or only add up."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(on, recurse=False)


def _cut(model: Transformer, mesh: DeviceMesh) -> None:
    config, size = model.config, mesh.size()
    refuse_cut(config, size, lora=model.lora is not None)
    _refuse_quantized(model)
    if any(isinstance(module, Float8Linear) for module in model.modules()):
        raise UserError(
            f"tensor_parallel_size={size}: layers in 8 bits cannot be cut yet; set it to 1"
        )
    into = {f"attention.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    into |= {"attention.value_gate": ColwiseParallel()} if config.value_gate_channels else {}
    into |= {
        f"mlp.{name}": ColwiseParallel()
        for name in ("gate_proj", "up_proj")[not config.gated_mlp :]
    }
    out = {name: RowwiseParallel() for name in ("attention.o_proj", "mlp.down_proj")}
    for block in model.layers:
        assert isinstance(block, Block)
        block.attention.num_heads //= size  # the heads of this process
        block.attention.num_kv_heads //= size
        parallelize_module(block, mesh, {**into, **out}, src_data_rank=None)
    # Each process looks up the channels of its own heads.
    for table in model.value_embeds.values():
        parallelize_module(table, mesh, ColwiseParallel(), src_data_rank=None)


def _spread(blocks: list[nn.Module], share: float) -> list[nn.Module]:
    """Return this share of ``blocks``, spread evenly."""
    chosen = [i for i in range(len(blocks)) if int((i + 1) * share + 1e-9) > int(i * share + 1e-9)]
    return [blocks[i] for i in chosen]


def _device(mesh: DeviceMesh) -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if mesh.device_type == "cuda"
        else torch.device("cpu")
    )
