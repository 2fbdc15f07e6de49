"""Value embeddings, smear, bigrams, exclusive attention, embedding mix and back-out; rows of
trees are in test_forest, batches and reused caches in test_generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.errors import UserError
from lit_llm.models.attention import KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.lora import apply_lora
from lit_llm.models.lora_config import LoRAConfig
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.quantize import QuantizedLinear
from lit_llm.models.token_rows import add_token_rows, cut_vocabulary
from lit_llm.models.transformer import Transformer

SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "max_seq_len": 64, "embedding_norm": True, "value_embeddings": [0, 2],
    "value_gate_channels": 12, "smear_channels": 24, "embedding_mix": True, "backout_layer": 1,
    "bigram_rows": 40, "exclusive_attention": True,
}  # fmt: skip


def randomized(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # at the start smear and blocks are the identity
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return randomized()


def test_the_sum_of_the_definitions() -> None:
    """One token before, one layer without attention or MLP: the formulas of the fields."""
    model = randomized(num_layers=1, value_embeddings=None, value_gate_channels=None,
                       backout_layer=0)  # fmt: skip
    block = model.layers[0]
    for projection in (block.attention.o_proj, block.mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    a, b = model.embed_norm(model.embed(torch.tensor([5, 9])))
    gate = model.smear.scale * torch.sigmoid(model.smear.weight @ b[:24])
    row = model.bigram.table.weight[(5 * 36313 ^ 9 * 27191) % 40]
    first = b + gate * a + model.bigram.scale * row
    x = block.mix.residual * first + block.mix.first * first
    expected = model.norm(x - model.backout.scale * x)
    torch.testing.assert_close(model.hidden_states(torch.tensor([[5, 9]]))[0, 1], expected)


def test_a_row_of_the_table_is_added_to_the_values() -> None:
    model = randomized(num_layers=1, value_embeddings=[0], backout_layer=None,
                       exclusive_attention=False)  # fmt: skip
    ids = torch.tensor([[7]])
    attention = model.layers[0].attention
    seen = []
    attention.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(ids)
    x, values = seen  # a single token attends to itself alone
    gate = 3 * torch.sigmoid(attention.value_gate.weight @ x[0, 0, :12])
    rows = attention.v_proj(x)[0, 0].view(2, 8) + gate[:, None] * model.value_embeds["0"].weight[
        7
    ].view(2, 8)
    expected = rows.repeat_interleave(2, 0).flatten()  # two query heads share a value head
    torch.testing.assert_close(values[0, 0], expected)


def test_what_heads_return_has_no_part_of_the_own_value() -> None:
    model = randomized(num_layers=1, value_embeddings=None, value_gate_channels=None,
                       backout_layer=None)  # fmt: skip
    attention, seen = model.layers[0].attention, []
    attention.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attention.v_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model(ids)
    own, exclusive = (each.detach().unflatten(-1, (-1, 8)) for each in seen)
    own = own.repeat_interleave(2, 2)  # two query heads share a value head
    attention.exclusive = False
    model(ids)
    whole = seen[-1].detach().unflatten(-1, (-1, 8))
    direction = torch.nn.functional.normalize(own, dim=-1)
    torch.testing.assert_close(
        exclusive, whole - (whole * direction).sum(-1, keepdim=True) * direction
    )
    assert not exclusive[:, 0].abs().gt(1e-5).any()  # the first token attends to itself alone


@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_packed_documents_equal_single_ones(model: Transformer, documents: list[list[int]]) -> None:
    ids = torch.tensor([[token for document in documents for token in document]])
    owners = torch.tensor([[i for i, document in enumerate(documents) for _ in document]])
    packed = model.hidden_states(ids, document_ids=owners)[0]
    alone = [model.hidden_states(torch.tensor([document]))[0] for document in documents]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_cached_equals_full(model: Transformer, pieces: list[int], seed: int) -> None:
    ids = torch.randint(0, 61, (2, sum(pieces)), generator=torch.Generator().manual_seed(seed))
    cache = KVCache(model.config, 2, sum(pieces), torch.device("cpu"), torch.float32)
    parts = [model(piece, cache=cache) for piece in ids.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-4, rtol=1e-5)


def test_padding_is_no_token_before(model: Transformer) -> None:
    ids, real = torch.tensor([[9, 9, 9, 4, 8, 2]]), torch.tensor([[0, 0, 0, 1, 1, 1]]).bool()
    padded = model(ids, padding_mask=real)[:, 3:]
    torch.testing.assert_close(padded, model(ids[:, 3:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recomputed_and_compiled_it_is_the_same(compile: bool) -> None:
    plain, other = randomized().train(), randomized().train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    parallelize(other, compile=compile, activation_checkpointing=1.0)
    ids = torch.randint(0, 61, (2, 33))
    for net in (plain, other):
        net.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        # Sums of many terms of both signs: compared with the tensor's largest element.
        atol = 2e-4 * max(1.0, one.grad.abs().max().item())
        torch.testing.assert_close(one.grad, two.grad, msg=name, rtol=0, atol=atol)


def test_a_new_model_guesses_and_its_smear_does_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE))
    assert model.smear.scale.item() == 0 and model.backout.scale.item() == pytest.approx(0.2)
    assert [block.mix.residual.item() for block in model.layers] == pytest.approx([1.15, 1.1, 1.05])
    assert [block.mix.first.item() for block in model.layers] == pytest.approx([0.2, 0.125, 0.05])
    assert set(model.value_embeds) == {"0", "2"}
    assert model.layers[1].attention.value_gate is None
    for table in model.value_embeds.values():
        assert table.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_it_is_saved_and_loaded(model: Transformer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == model.config
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(again(ids), model(ids))


def test_adapters_and_packed_weights_leave_the_tables_alone(tmp_path: Path) -> None:
    randomized().save_pretrained(tmp_path)
    model, _ = load_quantized(tmp_path, "int8", torch.float32)
    apply_lora(model, LoRAConfig(rank=2))
    attention = model.layers[0].attention
    assert isinstance(attention.q_proj, QuantizedLinear)
    assert model.value_embeds["0"].weight.dtype == attention.value_gate.weight.dtype
    ids = torch.randint(0, 61, (1, 20))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    trained = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value_embeddings": [3]}, "value_embeddings names layer 3; the model has layers 0 to 2"),
        ({"value_embeddings": None}, "value_gate_channels needs value_embeddings"),
        ({"value_gate_channels": 33}, "value_gate_channels=33 is more than hidden_size=32"),
        ({"smear_channels": 33}, "smear_channels=33 is more than hidden_size=32"),
        ({"smear_channels": 0}, "smear_channels=0"),
        ({"backout_layer": 3}, "backout_layer names layer 3; the model has layers 0 to 2"),
        ({"bigram_rows": 0}, "bigram_rows=0"),
        ({"learned_positions": True}, "smear_channels needs an embedding without positions"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformerConfig(**{**SHAPE, **fields})


def test_packed_for_decoding_it_answers_the_same() -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    expected = generate(randomized(), prompts, 20, GREEDY)
    packed = randomized()
    pack_linears(packed)
    assert generate(packed, prompts, 20, GREEDY) == expected


def test_added_tokens_have_rows_in_the_tables() -> None:
    model = randomized()
    before = model.value_embeds["2"].weight.detach().clone()
    add_token_rows(model, [61, 62])
    assert model(torch.tensor([[5, 62]])).shape == (1, 2, 63)
    table = model.value_embeds["2"].weight
    torch.testing.assert_close(table[62], before.mean(0))
    assert torch.equal(table[:61], before)
    cut_vocabulary(model, 61)
    assert torch.equal(model.value_embeds["2"].weight, before)
    again = Transformer(model.config)
    again.load_state_dict(model.state_dict())
