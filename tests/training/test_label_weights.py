"""Labels with weights: losses are weighted means, in trees and packed as in separate rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llm import PretrainModule, TransformerConfig
from lit_llm.data.blocks import IGNORE
from lit_llm.data.conversations import Conversations
from lit_llm.data.instructions import PackedRows
from lit_llm.data.order import stack_samples
from lit_llm.data.trees import TREE_ARRAYS, TokenPath, Tree, trees_of
from lit_llm.models.kernels.objective import Objective
from lit_llm.training.metrics import new_metrics

VOCAB, LENGTH = 13, 24
SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
         "max_seq_len": 64}  # fmt: skip
# A conversation: the texts of its answers, of few different tokens, so that beginnings are shared.
TEXTS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.25, 1.0, 3.0])), min_size=2, max_size=9
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def module() -> PretrainModule:
    torch.manual_seed(0)
    made = PretrainModule(TransformerConfig(**SHAPE))
    made.configure_model()
    with torch.no_grad():
        for parameter in made.parameters():  # the blocks start as the identity
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
    return made.train()


def batch_of(trees: list[Tree]) -> dict[str, Tensor]:
    """The trees, packed two a row, as the data module gives them."""
    arrays = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in TREE_ARRAYS}
    offsets = np.cumsum([0, *map(len, trees)])
    weights = np.concatenate([tree.all_weights for tree in trees])
    conversations = Conversations(**arrays, offsets=offsets, weights=weights)
    rows = [list(range(i, min(i + 2, len(trees)))) for i in range(0, len(trees), 2)]
    packed = PackedRows(conversations, rows, 2 * LENGTH, pad_id=0)
    return stack_samples([packed[i] for i in range(len(rows))])


def apart(module: PretrainModule, paths: list[TokenPath], objective: Objective) -> Tensor:
    """The weighted sum, one text at a time, from all logits; a token in a context counts once."""
    heaviest: dict[tuple[int, ...], float] = {}
    for path in paths:
        for i in np.flatnonzero(path.learnt[1:]) + 1:
            key = tuple(path.ids[: i + 1].tolist())
            heaviest[key] = max(heaviest.get(key, 0), float(path.all_weights[i]))
    total = torch.zeros(())
    for key, weight in heaviest.items():
        ids = torch.tensor(key)[None]
        logits = module.network(ids[:, :-1])[0, -1].float()
        loss = F.cross_entropy(logits, ids[0, -1], label_smoothing=objective.label_smoothing)
        if objective.kind == "dft":
            loss = loss * (-loss).exp().detach()
        total = total + weight * loss
    return total


@given(
    conversations=st.lists(TEXTS, min_size=1, max_size=3),
    objective=st.sampled_from([None, {"kind": "dft"}, {"label_smoothing": 0.1}]),
    skip=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_trees_and_packing_equal_separate_rows(
    module: PretrainModule, conversations: list[Any], objective: dict[str, Any] | None, skip: bool
) -> None:
    paths = [[TokenPath.weighted(*zip(*text, strict=True)) for text in texts]
             for texts in conversations]  # fmt: skip
    trees = [tree for texts in paths for tree in trees_of(texts, LENGTH)]
    batch = batch_of(trees)
    head = module.network.lm_head
    head.objective = None if objective is None else Objective(**objective)
    module.skip_ignored_labels = skip
    results = []
    for function in (
        lambda: module.compute_loss(batch),
        lambda: sum(apart(module, texts, head.objective or Objective()) for texts in paths),
    ):
        module.zero_grad()
        value = function()
        if value.requires_grad:
            value.backward()
        grads = [torch.zeros(()) if p.grad is None else p.grad for p in module.parameters()]
        results.append([value.detach(), *(grad.clone() for grad in grads)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.expand_as(ours), atol=2e-5, rtol=2e-5)
    weight = sum(float(tree.all_weights.sum()) for tree in trees)
    assert float(module.count(batch)) == pytest.approx(weight)


def test_validation_is_the_weighted_mean(module: PretrainModule) -> None:
    paths = [TokenPath.weighted([1, 2, 3, 4], [0, 1, 0.5, 2]),
             TokenPath.weighted([5, 6, 7], [0, 0.25, 0])]  # fmt: skip
    batch = batch_of([tree for path in paths for tree in trees_of([path], LENGTH)])
    module.network.lm_head.objective = None
    metrics, sums = (new_metrics(torch.device("cpu")) for _ in range(2))
    batch["label_bytes"] = torch.where(batch["labels"] == IGNORE, 0, 3)
    with torch.no_grad():
        module.evaluate(batch, metrics)
        losses = module.token_losses(batch)
        sums.add_sum(module.compute_loss(batch), module.count(batch))
    expected = float((losses * batch["label_weights"]).sum() / 3.75)
    assert float(metrics.compute()["loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(sums.compute()["loss"]) == pytest.approx(expected, rel=1e-6)
    # Bits per byte are of the text: four labels of three bytes.
    bits = float(losses[batch["labels"] != IGNORE].sum()) / np.log(2) / 12
    assert float(metrics.compute()["bits_per_byte"]) == pytest.approx(bits, rel=1e-6)
