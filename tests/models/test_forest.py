"""Rows of token trees against the same texts in rows of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from lit_llm.data.blocks import IGNORE
from lit_llm.data.trees import TokenPath, Tree, trees_of
from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.kernels import backends as backends_module
from lit_llm.models.kernels.backends import BLOCKS, Backends
from lit_llm.models.kernels.forest_attention import forest_attention
from lit_llm.models.masks import BLOCK, build_block_mask
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.transformer import Transformer

VOCAB = 7
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 48, "max_seq_len": 512,
}  # fmt: skip
# What a mask or a position can depend on.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "windows": {"sliding_window": 3, "sliding_layers": [1]},
    "soft caps": {"attention_softcap": 5.0, "logit_softcap": 8.0},
    "learned positions": {"learned_positions": True, "nope_layers": [1]},
    "query norms": {"qk_norm": "before_rope"},
    "embeddings mixed in": {
        "embedding_norm": True,
        "value_embeddings": [1],
        "value_gate_channels": 4,
        "smear_channels": 6,
        "bigram_rows": 50,
        "exclusive_attention": True,
        "embedding_mix": True,
        "backout_layer": 0,
    },
    "experts": {"num_experts": 4, "experts_per_token": 2, "router_aux_loss": 0.0},
}


def texts(seed: int, number: int, longest: int) -> list[TokenPath]:
    """Texts of few different tokens, which share beginnings of different lengths."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        common = made[draw.integers(len(made))].ids if made else np.empty(0, np.int32)
        kept = common[: draw.integers(len(common) + 1)]
        new = draw.integers(0, VOCAB, draw.integers(2, longest))
        ids = np.concatenate((kept, new)).astype(np.int32)[: 2 * longest]
        made.append(TokenPath(ids, draw.random(len(ids)) < 0.6))
    return made


def row_of(trees: list[Tree], length: int) -> tuple[Tensor, Tensor, Forest]:
    """Trees one after another in one row, and padding."""
    ids, labels = torch.zeros(1, length, dtype=torch.long), torch.full((1, length), IGNORE)
    until, position = torch.arange(1, length + 1)[None], torch.zeros(1, length, dtype=torch.long)
    at = 0
    for tree in trees:
        here = slice(at, at + len(tree))
        ids[0, here], labels[0, here] = (
            torch.from_numpy(tree.input_ids), torch.from_numpy(tree.labels),
        )  # fmt: skip
        until[0, here] = torch.from_numpy(tree.until) + at
        position[0, here] = torch.from_numpy(tree.position)
        at = here.stop
    return ids, labels, Forest(until, position)


def apart(paths: list[TokenPath]) -> list[tuple[Tensor, Tensor]]:
    """(ids, labels) of each text alone; a token in a context is learnt in one of the texts."""
    seen, rows = set(), []
    for path in paths:
        labels = torch.full((len(path.ids) - 1,), IGNORE)
        for i in np.flatnonzero(path.learnt[1:]) + 1:
            if (key := tuple(path.ids[: i + 1].tolist())) not in seen:
                seen.add(key)
                labels[i - 1] = int(path.ids[i])
        rows.append((torch.from_numpy(path.ids[:-1].astype(np.int64))[None], labels[None]))
    return rows


def model_of(family: dict[str, Any]) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{**SHAPE, **family}))
    with torch.no_grad():
        for parameter in model.parameters():  # the blocks start as the identity
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter == 1))
    return model.train()


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(backends_module, "_flex_attention", flex_attention.flex_attention)
    yield
    # A second soft cap would become a dynamic float, which FlexAttention of torch 2.13 refuses.
    torch._dynamo.reset()


BACKENDS = {"blocks": BLOCKS, "sdpa": Backends(), "flex": Backends("flex", "flex")}


@pytest.mark.usefixtures("flex_on_cpu")
@pytest.mark.parametrize(
    ("family", "backend", "again"),
    [
        case
        for case in itertools.product(FAMILIES, BACKENDS, (0.0, 1.0))
        # torch 2.13's uncompiled FlexAttention gives wrong gradients with a score_mod inside a
        # checkpoint; a run always compiles it.
        if case != ("soft caps", "flex", 1.0)
    ],
)
def test_trees_equal_separate_rows(family: str, backend: str, again: float) -> None:
    """Sums of losses and their gradients, with and without activation checkpointing."""
    plain, model = model_of(FAMILIES[family]), model_of(FAMILIES[family])
    parallelize(model, backends=BACKENDS[backend], activation_checkpointing=again)
    for seed in range(4):
        paths = texts(seed, number=2 + 3 * seed, longest=20 + 10 * seed)
        other = texts(seed + 50, number=2, longest=9)
        trees = [*trees_of(paths, 400), *trees_of(other, 400)]
        ids, labels, forest = row_of(trees, sum(map(len, trees)) + 5)
        model.zero_grad()
        plain.zero_grad()
        loss = model.loss(ids, labels, forest=forest, skip_ignored_labels=True)
        loss.backward()
        model.take_router_loss()
        expected = torch.zeros(())
        for one, its_labels in [*apart(paths), *apart(other)]:
            expected = expected + plain.loss(one, its_labels)
            plain.take_router_loss()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        ours, theirs = gradients(model), gradients(plain)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["blocks", "sdpa"])
def test_bfloat16_has_no_nan(backend: str) -> None:
    model = model_of({"sliding_window": 4})
    parallelize(model, backends=BACKENDS[backend])
    trees = trees_of(texts(3, number=12, longest=40), 300)
    ids, labels, forest = row_of(trees, sum(map(len, trees)) + 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids, labels, forest=forest)
    loss.backward()
    assert loss.isfinite() and all(grad.isfinite().all() for grad in gradients(model).values())


FORESTS = st.builds(
    lambda seed, number, longest, cut: row_of(
        trees := trees_of(texts(seed, number, longest), 2 * longest + cut),
        sum(map(len, trees)) + seed % 3,
    )[2],
    seed=st.integers(0, 10**6), number=st.integers(1, 30), longest=st.integers(3, 120),
    cut=st.integers(0, 200),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(forest=FORESTS)
def test_a_token_sees_its_path(forest: Forest) -> None:
    seen = forest.visible()[0, 0]
    T = len(seen)
    assert torch.equal(seen.sum(1), forest.position[0] + 1)  # as many as its distance says
    ranks = torch.where(seen, forest.position[0], -1).sort(1).values
    earlier = torch.where(seen.tril(-1), torch.arange(T), -1)
    assert torch.equal(forest.before()[0], earlier.max(1).values)  # the nearest is the token before
    for i in range(T):  # and one of each distance
        assert ranks[i, T - 1 - int(forest.position[0, i]) :].tolist() == list(
            range(int(forest.position[0, i]) + 1)
        )


@settings(max_examples=40, deadline=None)
@given(forest=FORESTS, window=st.one_of(st.none(), st.integers(1, 150)))
def test_block_lists_are_those_of_create_block_mask(forest: Forest, window: int | None) -> None:
    T = forest.until.shape[1]
    mask = build_block_mask(torch.zeros(1, T, dtype=torch.long), window, forest)
    dense = forest.visible(window)
    theirs = create_block_mask(lambda b, h, q, k: dense[b, 0, q, k], 1, 1, T, T, device="cpu")
    assert T <= BLOCK or mask.kv_num_blocks.shape[-1] > 1
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(mask, name), getattr(theirs, name)), name


@settings(max_examples=40, deadline=None)
@given(
    forest=FORESTS, window=st.one_of(st.none(), st.integers(1, 150)), groups=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
)  # fmt: skip
def test_the_cpu_kernel_equals_sdpa(
    forest: Forest, window: int | None, groups: int, kv_heads: int
) -> None:
    T = forest.until.shape[1]
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, T, heads, 4).transpose(1, 2).requires_grad_()
        for heads in (groups * kv_heads, kv_heads, kv_heads)
    )
    grad = torch.randn(1, groups * kv_heads, T, 4)

    def with_gradients(attend: Callable[[], Tensor]) -> list[Tensor]:
        y = attend()
        return [y, *torch.autograd.grad(y, (q, k, v), grad)]

    ours = with_gradients(lambda: forest_attention(q, k, v, *forest, window or 0, 0.3))
    theirs = with_gradients(
        lambda: F.scaled_dot_product_attention(
            q, k, v, attn_mask=forest.visible(window), scale=0.3, enable_gqa=True
        )
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_cpu_kernel_is_an_operator_that_compiles() -> None:
    """Strides, dtypes and gradients are those that the compiler is told; no graph breaks."""
    forest = row_of(trees_of(texts(1, 6, 30), 200), 200)[2]
    q, k, v = (torch.randn(1, 200, h, 4).transpose(1, 2).requires_grad_() for h in (4, 2, 2))
    torch.library.opcheck(forest_attention, (q, k, v, *forest, 5, 0.3))


def test_documents_are_trees_without_branches() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    forest = Forest.of_documents(ids)
    assert forest.until.tolist() == [[3, 3, 3, 5, 5, 6], [6] * 6]
    assert forest.position.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    for name, one, other in zip(Forest._fields, forest, Forest.of_rows(ids), strict=True):
        assert torch.equal(one[1], other[1]), name
    assert list(itertools.chain(*forest.visible()[0, 0].int().tolist())).count(1) == 6 + 3 + 1
