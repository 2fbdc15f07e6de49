"""Memory per GPU during training, by category.

The model describes the step of `lit_llm fit`: weights, gradients and optimizer states in float32,
products and frozen weights in bfloat16 (or all in float32). Sources: ZeRO (arXiv:1910.02054) for
the effect of sharding, arXiv:2205.05198 for activations. The counts of saved tensors are those of
`lit_llm.models`, checked against torch's own accounting in tests/plan/test_memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_llm.models.kernels.limits import chunk_bytes
from lit_llm.plan.shape import ModelShape

Optimizer = Literal["adamw", "muon_adamw", "adamw_8bit"]
Precision = Literal["bf16", "fp32", "fp8"]
Quantization = Literal["nf4", "fp4", "int8"]

_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
QUANTIZED_BYTES: dict[Quantization, float] = {"nf4": _FOUR_BITS, "fp4": _FOUR_BITS, "int8": 1.0}
"""Bytes per quantized weight.

nf4, fp4: 4 bits per weight. Each block of 64 weights has an 8-bit scale, and each 256 scales have a
float32 scale (double quantization, arXiv:2305.14314, section 3). int8: one byte; the float32 scale
per output channel is not counted (arXiv:2208.07339).
"""


@dataclass(frozen=True)
class Setup:
    """Training settings that memory depends on."""

    micro_batch_size: int = 1
    """Sequences per GPU and forward pass."""
    seq_len: int = 4096
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"
    fsdp: int = 1
    """Number of GPUs over which weights, gradients and states are sharded."""
    tensor_parallel: int = 1
    """Number of GPUs over which each matrix is split; activations too (sequence parallel)."""
    lora: bool = False
    """The base weights are frozen.

    The LoRA weights with their gradients and states are too small to count.
    """
    quantize: Quantization | None = None
    """Format of the frozen matrices in the blocks. Embedding, head and norms are not quantized."""
    checkpointed: float = 0.0
    """Share of the blocks with activation checkpointing.

    Such a block keeps its input only and is computed again in the backward pass.
    """
    fused_norms: bool = True
    """RMSNorm is one kernel followed by a product with the gain, as on CUDA.

    On CPU, RMSNorm keeps its input only.
    """


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    states: float
    """Weights and optimizer states."""
    gradients: float
    casts: float
    """bfloat16 copies of trained weights: autocast's, or gathered blocks of a sharded model."""
    activations: float
    head: float
    """Logits, their gradients and the buffers of a chunked head."""

    @property
    def peak(self) -> float:
        """Peak memory: in the backward pass, activations shrink while gradients grow."""
        return self.states + max(self.casts + self.activations + self.head, self.gradients)


def training_memory(shape: ModelShape, setup: Setup) -> Memory:
    """Memory per GPU for training ``shape`` with ``setup``."""
    tp, shards = setup.tensor_parallel, setup.fsdp * setup.tensor_parallel
    half = setup.precision != "fp32"
    size = 2 if half else 4
    tokens = setup.micro_batch_size * setup.seq_len
    block = (shape.matrices - shape.width * shape.vocab_size) / shape.layers
    # Optimizer states per weight: two float32 moments (AdamW), or two of one byte (8-bit). Beside
    # Muon only the head has two: matrices of the blocks and lookup tables have one.
    moments = {
        "adamw": 8 * shape.params,
        "muon_adamw": 4 * shape.params + 4 * shape.width * shape.vocab_size,
        "adamw_8bit": 2 * shape.params,
    }[setup.optimizer]
    trained = 0.0 if setup.lora else 1.0
    weight = size if setup.lora else 4
    weights = weight * shape.params
    if setup.quantize is not None:
        weights += (QUANTIZED_BYTES[setup.quantize] - weight) * block * shape.layers
    if setup.quantize is not None:
        # The dequantized copy of the matrix in use.
        casts = size * shape.width * max(shape.mlp_width, shape.query_width) / tp
    elif setup.fsdp > 1:
        casts = 2 * size * block / tp  # the block in use and the block being gathered
    else:
        casts = 2 * shape.matrices / tp if half and not setup.lora else 0.0
    one_block = block_activations(shape, size, setup.fused_norms) * tokens / tp
    inputs = size * shape.width * tokens / tp
    activations = shape.layers * (
        (1 - setup.checkpointed) * one_block + setup.checkpointed * inputs
    )
    activations += one_block if setup.checkpointed else 0  # the block being recomputed
    ends = _norm(shape, size, setup.fused_norms) * shape.width * tokens / tp
    ends += size * shape.mixing_width * tokens / tp
    return Memory(
        states=(weights + trained * moments) / shards,
        gradients=trained * 4 * shape.params / shards,
        casts=casts,
        activations=activations + ends,
        head=_head(shape, setup, tokens, size),
    )


def _norm(shape: ModelShape, size: int, fused: bool) -> float:
    """Bytes per channel that a norm before a product keeps."""
    if shape.norm == "layer":
        # Its input (autocast's float32 on CUDA) and its output.
        return (4 if fused else size) + size
    if shape.norm == "rms_float32":
        return 4 + 4 + size  # input and normalized input in float32, and the output
    # RMSNorm keeps its input and its output (`RMSNormalize`). The fused kernel also keeps its
    # output before the product with the gain.
    return (3 if fused else 2) * size


def block_activations(shape: ModelShape, size: int, fused_norms: bool) -> float:
    """Bytes per token that one block keeps for its backward pass."""
    norms = shape.norms * _norm(shape, size, fused_norms) * shape.width
    # Rotated queries and keys, values, and the attention's output. On CPU the heads are not
    # contiguous, and the output is copied for o_proj.
    attention = size * ((2 if fused_norms else 3) * shape.query_width + 2 * shape.kv_width)
    if shape.qk_norm != "none":
        kept = size * (2 if fused_norms and shape.qk_norm == "with_gain" else 1)
        attention += kept * (shape.query_width + shape.kv_width)
    mlp = size * (3 if shape.gated else 2) * shape.mlp_width  # gate, up, their product
    return norms + attention + mlp


def _head(shape: ModelShape, setup: Setup, tokens: float, size: int) -> float:
    """Peak bytes of head and loss."""
    gradient = 0.0 if setup.lora else 4 * shape.vocab_size * shape.width / setup.tensor_parallel
    # On CUDA, a compiled pass keeps logits and their gradient. In eager mode, the gradient
    # overwrites the logits.
    largest = chunk_bytes("cuda" if setup.fused_norms else "cpu")
    chunk = (
        min(largest, size * tokens * shape.vocab_size)
        / setup.tensor_parallel
        * (2 if setup.fused_norms else 1)
    )
    return gradient + chunk + 2 * size * shape.width * tokens
