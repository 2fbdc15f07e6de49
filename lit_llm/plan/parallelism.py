"""Choice of a parallel layout: the one with the least communication that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lit_llm.errors import UserError
from lit_llm.models.accounting.hardware import Accelerator
from lit_llm.plan.memory import Memory, Setup, training_memory
from lit_llm.plan.shape import ModelShape
from lit_llm.plan.throughput import NODE

USABLE = 0.9
"""Share of a GPU's memory available to tensors.

The rest is the CUDA context, communication buffers and fragmentation.
"""


@dataclass(frozen=True)
class Parallelism:
    """A layout that fits."""

    setup: Setup
    memory: Memory
    accumulation: int
    """Micro-batches per step."""
    description: str
    reason: str


def choose(
    shape: ModelShape, accelerator: Accelerator, gpus: int, batch_tokens: float, setup: Setup
) -> Parallelism | None:
    """Choose the first layout that fits with one sequence; None if none fits.

    The order of the layouts: copies on every GPU (DDP); shards over one node or more, with copies
    (hybrid FSDP); shards over all GPUs (FSDP). All are tried without, then with activation
    checkpointing of all blocks. Matrices are split (tensor parallel) only if the batch has fewer
    sequences than there are GPUs. The micro-batch of the layout is then doubled as long as it fits.
    """
    # Tensor parallelism: split matrices until each group of GPUs has a sequence of the batch.
    sequences = max(1, round(batch_tokens / setup.seq_len))
    # LoRA, layers in 8 bits and quantized weights are not cut; the latter are not sharded either.
    cannot = setup.lora or setup.precision == "fp8" or setup.quantize is not None
    most = 1 if cannot else min(shape.most_cuts, NODE, gpus)
    tensor = 1
    while gpus / tensor > sequences and 2 * tensor <= most:
        tensor *= 2
    # Degrees of sharding, in order of communication: none, whole nodes that divide the number of
    # copies, all GPUs.
    room = USABLE * accelerator.memory_bytes
    copies = gpus // tensor
    unit = max(1, NODE // tensor)
    between = [
        degree for degree in range(unit, copies, unit) if copies % degree == 0 and degree > 1
    ]
    degrees = [1, *between, *([copies] if copies > 1 else [])]
    if setup.quantize is not None:
        degrees = [1]
    for share in (0.0, 1.0):
        for degree in degrees:
            tried = replace(
                setup,
                micro_batch_size=1,
                fsdp=degree,
                tensor_parallel=tensor,
                checkpointed=share,
            )
            if training_memory(shape, tried).peak > room:
                continue
            # Double the micro-batch as long as it fits and each copy has enough sequences.
            share = max(1, sequences // copies)
            while 2 * tried.micro_batch_size <= share:
                larger = replace(tried, micro_batch_size=2 * tried.micro_batch_size)
                if training_memory(shape, larger).peak > room:
                    break
                tried = larger
            memory = training_memory(shape, tried)
            accumulation = max(1, round(sequences / (copies * tried.micro_batch_size)))
            name, why = _describe(shape, tried, gpus)
            if copies > sequences:
                step = copies * setup.seq_len
                why += f"; each copy needs a sequence, so a step has {step / 1e6:,.3g}M tokens"
            return Parallelism(tried, memory, accumulation, name, why)
    return None


def fewest_gpus(
    shape: ModelShape, accelerator: Accelerator, batch_tokens: float, setup: Setup
) -> int | None:
    """The smallest number of GPUs on which a layout fits; None if 65,536 do not suffice.

    The candidates are typical machines: 1, 2, 4 or 8 GPUs, then whole nodes of 8, and above 64
    nodes powers of two.
    """
    few = [1, 2, 4, *range(NODE, 64 * NODE + 1, NODE)]
    for gpus in (*few, *(64 * NODE * 2**n for n in range(1, 8))):
        if choose(shape, accelerator, gpus, batch_tokens, setup) is not None:
            return gpus
    return None


def check_fits(
    shape: ModelShape, accelerator: Accelerator, gpus: int, batch_tokens: float, setup: Setup
) -> Parallelism:
    """`choose`, or a UserError that names the smallest number of GPUs that suffices."""
    found = choose(shape, accelerator, gpus, batch_tokens, setup)
    if found is not None:
        return found
    enough = fewest_gpus(shape, accelerator, batch_tokens, setup)
    size = f"{shape.params / 1e9:.3g}B parameters do not fit on {gpus} x {accelerator.name}"
    if enough is None:
        raise UserError(
            f"{size}, nor on any number of them at seq_len={setup.seq_len}: take one with more "
            f"memory"
        )
    raise UserError(f"{size}, sharded and with activation checkpointing: set gpus={enough} or more")


def _describe(shape: ModelShape, setup: Setup, gpus: int) -> tuple[str, str]:
    copies = gpus // setup.tensor_parallel
    memory = training_memory(shape, replace(setup, fsdp=1, tensor_parallel=1))
    held = "frozen weights" if setup.lora else "weights, gradients and optimizer states"
    whole = f"{held} are {(memory.states + memory.gradients) / 1e9:,.0f} GB"
    if gpus == 1:
        name, why = "one GPU", whole
    elif setup.fsdp == 1:
        name, why = (
            f"DDP over {copies}",
            f"{whole}: each GPU can hold a copy, which communicates least",
        )
    elif setup.fsdp < copies:
        name = f"hybrid FSDP: shards over {setup.fsdp}, {copies // setup.fsdp} copies"
        why = f"{whole}: the fewest GPUs that hold them and the activations, as shards communicate"
    else:
        name, why = (
            f"FSDP over {copies}",
            f"{whole}: fewer GPUs do not hold them and the activations",
        )
    if setup.tensor_parallel > 1:
        name += f", tensor parallel {setup.tensor_parallel}"
        why += "; matrices are cut because the batch has fewer sequences than there are GPUs"
    if setup.checkpointed:
        name += ", activation checkpointing"
        why += "; activations do not fit and are computed again"
    return name, why
