"""The chunked loss and its gradients against torch's own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels import loss
from lit_llm.models.kernels.loss import IGNORE, linear_cross_entropy
from lit_llm.models.transformer import Transformer


def plain(
    x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale, cap, weights_N=None
) -> torch.Tensor:
    logits = x @ weight.T * (scale or 1.0)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE)
    return (losses if weights_N is None else losses * weights_N).sum()


@given(
    rows=st.integers(0, 23),
    vocab=st.integers(2, 40),
    chunk=st.integers(1, 1200),
    scale=st.one_of(st.none(), st.floats(0.1, 3.0)),
    cap=st.one_of(st.none(), st.floats(1.0, 30.0)),
    upstream=st.floats(-2.0, 2.0),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_it_is_torchs_cross_entropy(rows, vocab, chunk, scale, cap, upstream, weighted, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.2] = IGNORE
    weights = 3 * torch.rand(rows, generator=generator) if weighted else None
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_bytes", lambda device: chunk)
        patch.setattr(loss, "_CACHED_BYTES", chunk // 3)
        patch.setattr(
            loss, "_compiled", lambda: loss._whole
        )  # its formula; the next test compiles it
        for function in (plain, linear_cross_entropy, partial(linear_cross_entropy, compiled=True)):
            inputs = [x.float().requires_grad_(), weight.float().requires_grad_()]
            value = function(*inputs, labels, scale, cap, weights_N=weights)
            (value * upstream).backward()
            results.append((value, *(t.grad for t in inputs)))
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    monkeypatch.setattr(loss, "chunk_bytes", lambda device: 4 * 50 * 5)
    torch.manual_seed(0)
    x, weight, labels = torch.randn(10, 16), torch.randn(50, 16), torch.randint(0, 50, (10,))
    labels[3] = IGNORE
    results = []
    for compiled in (False, True):
        inputs = [t.clone().requires_grad_() for t in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = linear_cross_entropy(*inputs, labels, 0.5, 15.0, compiled)
        value.backward()
        results.append((value.detach(), *(t.grad for t in inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-2 if half else 1e-6, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("labelled", [255, 341, 511, 1000, 1022, 1024])
def test_the_mean_gradient_of_half_precision_has_the_right_size(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, labelled: int
) -> None:
    """Rounding goes up as often as down, so it does not make all gradients smaller."""
    monkeypatch.setattr(loss, "_compiled", lambda: loss._whole)
    torch.manual_seed(0)
    # Small logits: their own rounding shall not show.
    x, weight = torch.randn(1024, 64).bfloat16(), (0.02 * torch.randn(50, 64)).bfloat16()
    labels = torch.randint(0, 50, (1024,))
    labels[labelled:] = IGNORE
    results = []
    for function in (plain, partial(linear_cross_entropy, compiled=compiled)):
        dtype = torch.float64 if function is plain else torch.bfloat16
        inputs = [t.to(dtype).requires_grad_() for t in (x, weight)]
        (function(*inputs, labels, None, None) / labelled).backward()
        results.append([t.grad.double() for t in inputs])
    for exact, got in zip(*results, strict=True):
        # How much of the exact gradient is in ours: what all values have in common shows.
        assert ((got * exact).sum() / exact.square().sum()).item() == pytest.approx(1, abs=2e-4)


def test_a_frozen_head_gets_no_gradient() -> None:
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    linear_cross_entropy(x, weight, torch.arange(5)).backward()
    assert x.grad is not None and weight.grad is None
    with torch.no_grad():
        assert linear_cross_entropy(x, weight, torch.arange(5)).grad_fn is None


def test_what_is_not_predicted_may_be_anything() -> None:
    x, weight = torch.randn(6, 8), torch.randn(11, 8, requires_grad=True)
    x[2], x[4, 0] = torch.nan, torch.inf
    x.requires_grad_()
    labels = torch.tensor([1, 5, IGNORE, 0, IGNORE, 9])
    value = linear_cross_entropy(x, weight, labels)
    value.backward()
    assert value.isfinite() and weight.grad.isfinite().all() and x.grad.isfinite().all()
    assert not x.grad[labels == IGNORE].any()


def test_a_second_backward_is_refused() -> None:
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    value = linear_cross_entropy(x, weight, torch.arange(5))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once"):
        value.backward()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_a_model_learns_the_same_with_it(
    monkeypatch: pytest.MonkeyPatch, tied: bool, documents: bool
) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, tie_embeddings=tied,
        logit_softcap=15.0, logit_scale=0.5
    )  # fmt: skip
    model = Transformer(config)
    ids, labels = torch.randint(0, 300, (2, 2, 24))
    labels[0, :7] = IGNORE
    document_ids = (
        torch.arange(24).div(9, rounding_mode="floor").expand(2, -1) if documents else None
    )
    grads = []
    monkeypatch.setattr(loss, "chunk_bytes", lambda device: 4 * 300 * 7)
    for value_of in (
        lambda: model.token_losses(ids, labels, document_ids).sum(),
        lambda: model.loss(ids, labels, document_ids),
        lambda: model.loss(ids, labels, document_ids, skip_ignored_labels=True),
    ):
        model.zero_grad()
        value = value_of()
        value.backward()
        grads.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    for got in grads[1:]:
        for tensor, expected in zip(got, grads[0], strict=True):
            torch.testing.assert_close(tensor, expected, atol=1e-4, rtol=1e-4)


def test_under_autocast_the_products_are_half_and_the_loss_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "_SLAB", 16)
    x, weight = torch.randn(9, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        value = linear_cross_entropy(x, weight, labels)
    value.backward()
    exact = [t.detach().clone().requires_grad_() for t in (x, weight)]
    plain(*exact, labels, None, None).backward()
    torch.testing.assert_close(weight.grad, exact[1].grad, atol=0.05, rtol=0.05)
    assert value.dtype == x.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(value, plain(x, weight, labels, None, None), atol=0.5, rtol=0.02)
