"""Memory against torch's own accounting of whole training steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planner import STEPS
from step_memory import simulated_peak

from lit_llm.models.accounting.flops import flops_per_token
from lit_llm.models.accounting.hardware import find_accelerator
from lit_llm.models.config import TransformerConfig
from lit_llm.models.presets import PRESETS
from lit_llm.plan.memory import QUANTIZED_BYTES, Quantization, Setup, training_memory
from lit_llm.plan.parallelism import choose, fewest_gpus
from lit_llm.plan.shape import shape_of, typical_shape

MIXED = {
    "value_embeddings": [1, 3], "value_gate_channels": 12, "smear_channels": 24,
    "bigram_rows": 8192, "exclusive_attention": True,
    "embedding_mix": True, "backout_layer": 2,
}  # fmt: skip
# Few layers and small batches: the time goes with their operators. The others take up to a minute.
QUICK = [
    ("gpt2", {"num_layers": 2}, 4, 1024, "adamw", True),
    ("gpt2", {"num_layers": 2}, 4, 1024, "adamw", False),
    ("nano-5m", {}, 8, 256, "muon_adamw", True),
    ("nano-5m", MIXED, 8, 256, "muon_adamw", True),
]


@pytest.mark.parametrize(
    "step",
    [
        *QUICK,
        *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS if step not in QUICK),
    ],
    ids=lambda step: (
        f"{step[0]}{'-mixed' * (step[1] is MIXED)}-{step[2]}x{step[3]}-{step[4]}-{step[5]}"
    ),
)
def test_peak_within_a_tenth(step: tuple) -> None:
    preset, fields, batch, seq_len, optimizer, autocast = step
    config = TransformerConfig.from_preset(preset, **fields)
    setup = Setup(batch, seq_len, "bf16" if autocast else "fp32", optimizer, fused_norms=False)
    predicted = training_memory(shape_of(config, seq_len), setup).peak
    assert predicted == pytest.approx(
        simulated_peak(config, batch, seq_len, optimizer, autocast), rel=0.10
    )


@pytest.mark.parametrize("autocast", [True, False])
def test_peak_of_lora_within_a_tenth(autocast: bool) -> None:
    config = TransformerConfig.from_preset("llama-3-8b", num_layers=2, hidden_size=1024,
                                           num_heads=8, num_kv_heads=2,
                                           intermediate_size=3584)  # fmt: skip
    setup = Setup(2, 512, "bf16" if autocast else "fp32", lora=True, fused_norms=False)
    predicted = training_memory(shape_of(config, 512), setup).peak
    assert predicted == pytest.approx(
        simulated_peak(config, 2, 512, "adamw", autocast, lora=True), rel=0.10
    )


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_bytes_of_a_quantised_weight_are_bitsandbytes(kind: Quantization) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0))
    if kind != "int8":
        packed, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type=kind)
        held = [packed, state.absmax, state.state2.absmax]
    else:
        packed, scales, _ = functional.int8_vectorwise_quant(weight.half())
        held = [packed]  # the scales of the output channels are not counted
        assert scales.nbytes < 0.005 * packed.nbytes
    stored = sum(tensor.nbytes for tensor in held) / weight.numel()
    assert QUANTIZED_BYTES[kind] == pytest.approx(stored, rel=0.001)


def test_a_quantised_base_is_smaller_by_its_blocks_alone() -> None:
    shape = shape_of(TransformerConfig.from_preset("llama-3-8b"), 4096)
    whole, small = (
        training_memory(shape, Setup(lora=True, quantize=way)).states for way in (None, "nf4")
    )
    blocks = shape.matrices - shape.width * shape.vocab_size
    assert whole - small == pytest.approx((2 - QUANTIZED_BYTES["nf4"]) * blocks)


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_are_the_projects(preset: str) -> None:
    # Its matrices are held to torch's FlopCounterMode in test_flops.py
    config = TransformerConfig.from_preset(preset)
    flops = shape_of(config, 2048).training_flops(1.0, 2048)
    assert flops == pytest.approx(flops_per_token(config, 2048))


def test_a_typical_shape_is_close_to_a_real_one() -> None:
    real = shape_of(TransformerConfig.from_preset("llama-3-8b"), 4096)
    typical = typical_shape(real.params)
    assert typical.training_flops(1.0, 4096) == pytest.approx(
        real.training_flops(1.0, 4096), rel=0.05
    )
    setup = Setup(1, 4096)
    assert training_memory(typical, setup).peak == pytest.approx(
        training_memory(real, setup).peak, rel=0.15
    )


def test_zero_divides_what_it_says() -> None:
    """ZeRO's example (arXiv:1910.02054, figure 1): 7.5B parameters on 64 GPUs, 120 GB against
    1.9."""
    shape = typical_shape(7.5e9)

    def state_gb(setup: Setup) -> float:
        memory = training_memory(shape, setup)
        return (memory.states + memory.gradients) / 1e9

    assert state_gb(Setup()) == pytest.approx(120)
    assert state_gb(Setup(fsdp=64)) == pytest.approx(1.9, rel=0.02)
    assert state_gb(Setup(lora=True, precision="fp32")) == pytest.approx(30)
    # What is frozen is held as it is multiplied
    assert state_gb(Setup(lora=True)) == pytest.approx(15)
    assert state_gb(Setup(optimizer="adamw_8bit")) == pytest.approx(75)
    whole, less = Setup(4, 4096), Setup(4, 4096, checkpointed=1.0)
    assert (
        training_memory(shape, less).activations < 0.2 * training_memory(shape, whole).activations
    )
    halved = training_memory(shape, replace(whole, tensor_parallel=2))
    assert halved.activations == pytest.approx(training_memory(shape, whole).activations / 2)


@pytest.mark.parametrize(
    ("params", "gpu", "gpus", "batch_tokens", "words"),
    [
        (1e9, "h100", 1, 2**20, "one GPU"),
        (1e9, "h100", 8, 2**20, "DDP over 8"),
        (8e9, "h100", 64, 2**22, "hybrid FSDP: shards over 8, 8 copies"),
        (70e9, "h100", 64, 2**22, "hybrid FSDP: shards over 16, 4 copies"),
        (70e9, "h100", 16, 2**22, "FSDP over 16"),
        (70e9, "h100", 2048, 2**22, "tensor parallel 2"),
        (70e9, "h100", 16, 2**22, "activation checkpointing"),
    ],
)
def test_layouts(params: float, gpu: str, gpus: int, batch_tokens: float, words: str) -> None:
    chip, shape = find_accelerator(gpu), typical_shape(params)
    found = choose(shape, chip, gpus, batch_tokens, Setup(seq_len=4096))
    assert found is not None and words in found.description
    assert found.memory.peak <= 0.9 * chip.memory_bytes
    step = (
        found.setup.micro_batch_size
        * 4096
        * found.accumulation
        * gpus
        / found.setup.tensor_parallel
    )
    assert step == pytest.approx(batch_tokens, rel=0.5)


@pytest.mark.parametrize(
    ("preset", "setup", "most"),
    [
        ("llama-3-8b", Setup(), 8),
        ("llama-3-8b", Setup(lora=True), 1),
        ("llama-3-8b", Setup(precision="fp8"), 1),
        ("qwen3-30b-a3b", Setup(), 1),  # experts
        ("smollm2-135m", Setup(), 1),  # 9 heads, 3 of keys
        ("gpt2", Setup(), 4),  # 12 heads
    ],
)
def test_matrices_are_cut_as_fit_can_cut_them(preset: str, setup: Setup, most: int) -> None:
    shape = shape_of(TransformerConfig.from_preset(preset), 4096)
    found = choose(shape, find_accelerator("h100"), 1024, 16 * 4096, setup)
    assert found is not None and found.setup.tensor_parallel == most
    step = f"a step has {1024 / most * 4096 / 1e6:.3g}M tokens"
    assert found.reason.endswith(f"each copy needs a sequence, so {step}")


def test_what_fits_nowhere() -> None:
    assert choose(typical_shape(70e9), find_accelerator("a100-40gb"), 8, 2**22, Setup()) is None
    assert fewest_gpus(typical_shape(70e9), find_accelerator("a100-40gb"), 2**22, Setup()) == 40
    assert fewest_gpus(typical_shape(7e9), find_accelerator("h100"), 2**22, Setup()) == 2
    assert (
        fewest_gpus(typical_shape(1e9), find_accelerator("t4"), 2**22, Setup(seq_len=2**22)) is None
    )


def test_value_embeddings_take_memory_and_no_products() -> None:
    plain = shape_of(TransformerConfig.from_preset("fast-5m", value_embeddings=None), 512)
    fast = shape_of(TransformerConfig.from_preset("fast-5m"), 512)
    assert fast.params - plain.params == 2 * 4096 * 256
    assert fast.active_params == plain.active_params
    assert fast.training_flops(1.0, 512) == plain.training_flops(1.0, 512)
    states = [
        training_memory(shape, Setup(optimizer="muon_adamw")).states for shape in (plain, fast)
    ]
    assert states[1] - states[0] == 8 * 2 * 4096 * 256  # a weight and one moment
