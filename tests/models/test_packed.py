"""Packed linear layers: the same function, the same number of weights, in place."""

from __future__ import annotations

import copy

import pytest
import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.kernels.packed import PackedLinear, pack_linears
from lit_llm.models.lora import LoRAConfig, LoRALinear, apply_lora
from lit_llm.models.transformer import Transformer

SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def filled(**fields: object) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE, **fields))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields",
                         [{"tie_embeddings": True}, {"attention_bias": True},
                          {"num_experts": 4, "experts_per_token": 2}],
                         ids=["tied", "bias", "experts"])  # fmt: skip
@torch.inference_mode()
def test_same_function(fields: dict, dtype: torch.dtype) -> None:
    model = filled(**fields).to(dtype)
    packed = copy.deepcopy(model)
    pack_linears(packed)
    assert isinstance(packed.head, PackedLinear)
    assert torch.equal(packed.head.weight.to_dense(), model.head.weight)
    assert torch.equal(packed.embed.weight, model.embed.weight)
    for batch, length in ((1, 1), (3, 9)):
        ids = torch.randint(0, 61, (batch, length))
        tolerance = (
            1e-5 if dtype == torch.float32 else 0.06
        )  # bfloat16 has steps of 2^-7 at the size of these logits
        torch.testing.assert_close(packed(ids), model(ids), atol=tolerance, rtol=tolerance)
    if dtype == torch.float32:
        prompts = [[1, 2, 3], [4]]
        assert generate(packed, prompts, 12, GREEDY) == generate(model, prompts, 12, GREEDY)


def test_what_oneDNN_does_not_know_stays() -> None:
    model = filled().double()
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    model = filled()
    apply_lora(model, LoRAConfig(rank=2, targets=("q_proj",)))
    pack_linears(model)
    assert type(model.layers[0].attention.q_proj) is LoRALinear
    assert type(model.layers[0].attention.k_proj) is PackedLinear
