"""The chunked losses of finetuning are those of plain torch, and never see all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llm.models.kernels import objective as module
from lit_llm.models.kernels.loss import IGNORE, linear_cross_entropy
from lit_llm.models.kernels.objective import Objective, linear_objective


def plain(
    x: Tensor, weight: Tensor, labels: Tensor, objective: Objective, reference: tuple | None,
    scale: float | None, softcap: float | None, weights_N: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weighted sum, from all logits at once and torch's own functions."""

    def logits(x: Tensor, weight: Tensor) -> Tensor:
        y = x @ weight.T
        y = y if scale is None else y * scale
        return y if softcap is None else softcap * torch.tanh(y / softcap)

    known, own = labels != IGNORE, logits(x, weight)
    losses = F.cross_entropy(
        own, labels, reduction="none", label_smoothing=objective.label_smoothing
    )
    if objective.kind == "dft":
        picked = own.softmax(-1).gather(1, labels[:, None].clamp(min=0))[:, 0]
        losses = losses * picked.detach()
    weights_N = torch.ones(len(labels)) if weights_N is None else weights_N
    total = (losses * weights_N)[known].sum()
    if reference is not None:
        log_q = logits(*reference).log_softmax(-1)
        kl = F.kl_div(own.log_softmax(-1), log_q, log_target=True, reduction="none").sum(-1)
        total = total + objective.anchor * (kl * weights_N)[known].sum()
    return total


@given(
    rows=st.integers(0, 23),
    vocab=st.integers(2, 40),
    chunk=st.integers(1, 1200),
    kind=st.sampled_from([{"kind": "dft"}, {"label_smoothing": 0.2}, {}]),
    anchor=st.sampled_from([0.0, 0.7]),
    scale=st.one_of(st.none(), st.floats(0.1, 3.0)),
    softcap=st.one_of(st.none(), st.floats(1.0, 30.0)),
    upstream=st.floats(-2.0, 2.0),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_it_is_plain_torch(
    rows, vocab, chunk, kind, anchor, scale, softcap, upstream, weighted, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, x_ref, weight_ref = (
        torch.randn(n, 8, generator=generator) * 0.5 for n in (rows, vocab, rows, vocab)
    )
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.2] = IGNORE
    weights = 3 * torch.rand(rows, generator=generator) if weighted else None
    objective = Objective(**kind, anchor=anchor)
    reference = (x_ref, weight_ref) if anchor else None
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "chunk_bytes", lambda device: chunk)
        for function in (plain, linear_objective):
            inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            value = function(
                *inputs, labels, objective, reference, scale, softcap, weights_N=weights
            )
            (value * upstream).backward()
            results.append((value, *(t.grad for t in inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "objective", [Objective(anchor=0.5), Objective("dft"), Objective(label_smoothing=0.1)]
)
def test_within_a_millionth(objective: Objective) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 32) / 6, torch.randn(101, 32)
    labels = torch.randint(0, 101, (300,))
    reference = (torch.randn(300, 32) / 6, weight) if objective.anchor else None
    inputs = [x.double(), weight.double()]
    wide = None if reference is None else (reference[0].double(), reference[1].double())
    expected = plain(*inputs, labels, objective, wide, None, None)
    got = linear_objective(x, weight, labels, objective, reference)
    assert float(got) == pytest.approx(float(expected), rel=1e-6)


def test_without_options_it_is_the_cross_entropy() -> None:
    x, weight, labels = torch.randn(20, 8), torch.randn(30, 8), torch.randint(0, 30, (20,))
    torch.testing.assert_close(
        linear_objective(x, weight, labels, Objective()), linear_cross_entropy(x, weight, labels)
    )


def test_no_more_logits_than_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    losses = Objective.losses

    def watched(self: Objective, logits: Tensor, *rest: Tensor) -> Tensor:
        seen.append(len(logits))
        return losses(self, logits, *rest)

    monkeypatch.setattr(Objective, "losses", watched)
    monkeypatch.setattr(module, "chunk_bytes", lambda device: 4 * 30 * 6)
    x, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8)
    linear_objective(x, weight, torch.zeros(20, dtype=torch.long), Objective("dft")).backward()
    assert seen == [6, 6, 6, 2] and weight.grad is None and x.grad.abs().sum() > 0


def test_under_autocast_gradients_keep_their_size() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(511, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (511,))
    grads = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (linear_objective(x, weight, labels, Objective("dft")) / 511).backward()
        grads.append((x.grad.clone(), weight.grad.clone()))
        x.grad = weight.grad = None
    for whole, rounded in zip(*grads, strict=True):
        torch.testing.assert_close(rounded, whole, atol=2e-4, rtol=5e-2)
        assert float(rounded.norm() / whole.norm()) == pytest.approx(1, abs=4e-3)
