"""Attention by blocks of queries against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from lit_llm.models import attention
from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels import blocked_attention
from lit_llm.models.kernels.backends import choose_attention
from lit_llm.models.kernels.blocked_attention import BlockedAttention, suits
from lit_llm.models.parallel.parallelize import use_backends
from lit_llm.models.transformer import Transformer


def heads(B: int, H: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As they come out of a projection: (B, H, T, D) that lies as (B, T, H, D)."""
    return torch.randn(B, T, H, D).to(dtype).transpose(1, 2).requires_grad_()


def with_gradients(attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    y = attend(q, k, v)
    return [y, *torch.autograd.grad(y, (q, k, v), grad)]


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float = 0.3) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def blocked(q: Tensor, k: Tensor, v: Tensor, scale: float = 0.3) -> Tensor:
    return BlockedAttention.apply(q, k, v, scale)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), K=st.integers(1, 3), G=st.integers(1, 3), D=st.sampled_from([4, 8]),
    T=st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 129, 300])),
    bytes_=st.sampled_from([1, 2**18, 2**24]),
)  # fmt: skip
def test_equals_sdpa(B: int, K: int, G: int, T: int, D: int, bytes_: int) -> None:
    """Whatever is computed at once: results and gradients are SDPA's within float32's rounding."""
    torch.manual_seed(0)
    q, k, v = heads(B, K * G, T, D), heads(B, K, T, D), heads(B, K, T, D)
    grad = torch.randn(B, K * G, T, D)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked_attention, "_WEIGHTS_BYTES", bytes_)
        got = with_gradients(blocked, q, k, v, grad)
    for one, other in zip(got, with_gradients(sdpa, q, k, v, grad), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_long_samples() -> None:
    torch.manual_seed(0)
    q, k, v = heads(1, 2, 1100, 8), heads(1, 1, 1100, 8), heads(1, 1, 1100, 8)
    grad = torch.randn(1, 2, 1100, 8)
    for one, other in zip(
        with_gradients(blocked, q, k, v, grad), with_gradients(sdpa, q, k, v, grad), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)


def test_gradients() -> None:
    q, k, v = (heads(2, H, 5, 4, torch.float64) for H in (4, 2, 2))
    assert gradcheck(lambda *t: BlockedAttention.apply(*t, 0.5), (q, k, v))


def test_in_half_precision_it_is_as_exact_as_transformers_eager() -> None:
    """Against float64 the errors are at most those of the formula that transformers calls eager,
    and a quarter more."""
    torch.manual_seed(0)
    q, k, v = (heads(2, H, 200, 32, torch.bfloat16) for H in (4, 2, 2))
    grad = torch.randn(2, 4, 200, 32).bfloat16()

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = (q @ k.transpose(2, 3) * 0.3).masked_fill(
            ~torch.ones(200, 200, dtype=torch.bool).tril(), -torch.inf
        )
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v

    exact = with_gradients(
        sdpa, *(t.detach().double().requires_grad_() for t in (q, k, v)), grad.double()
    )

    def errors(results: list[Tensor]) -> list[float]:
        return [
            ((r.double() - e).norm() / e.norm()).item() for r, e in zip(results, exact, strict=True)
        ]

    ours, theirs = (
        errors(with_gradients(blocked, q, k, v, grad)),
        errors(with_gradients(eager, q, k, v, grad)),
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine <= 1.25 * other


def test_nobody_sees_what_comes_later() -> None:
    torch.manual_seed(0)
    q, k, v = heads(1, 2, 200, 8), heads(1, 2, 200, 8), heads(1, 2, 200, 8)
    before = blocked(q, k, v)
    with torch.no_grad():
        for t in (q, k, v):
            t[:, :, 150:] = torch.nan
    assert torch.equal(blocked(q, k, v)[:, :, :128], before[:, :, :128])


def test_a_compiler_takes_it() -> None:
    torch.manual_seed(0)
    q, k, v = heads(2, 4, 160, 8), heads(2, 2, 160, 8), heads(2, 2, 160, 8)
    grad = torch.randn(2, 4, 160, 8)
    compiled = torch.compile(blocked, fullgraph=True, dynamic=False)
    for one, other in zip(
        with_gradients(compiled, q, k, v, grad), with_gradients(blocked, q, k, v, grad), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_it_is_taken(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = heads(1, 2, 16, 8, dtype), heads(1, 2, 16, 8, dtype)
    assert suits(q, k, k)
    longer = heads(1, 2, 17, 8, dtype)
    assert not suits(q, longer, longer), "a cache holds more keys than there are queries"
    assert not suits(*3 * (heads(1, 1, 4096, 1, dtype),)), "torch's kernel is the faster one"
    assert not suits(*3 * (heads(1, 2, 0, 8, dtype),))
    huge = 3 * (torch.empty(1, dtype=dtype).expand(4096, 64, 1024, 1),)
    assert suits(*huge)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not suits(*huge), "a graph of thousands of blocks"
    monkeypatch.undo()
    assert not suits(*3 * (heads(1, 2, 16, 8, torch.float16),))
    with torch.autocast("cpu", torch.bfloat16):
        assert suits(q, k, k) == (dtype == torch.bfloat16), (
            "products would be of another dtype than what is summed"
        )


def test_another_backend_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(TransformerConfig(vocab_size=50, hidden_size=16, num_layers=1, num_heads=2))
    ids = torch.zeros(1, 8, dtype=torch.long)
    asked = []
    monkeypatch.setattr(attention, "suits", lambda *tensors: bool(asked.append(1)))
    model(ids)
    use_backends(model, choose_attention(ids.device, torch.float32))
    model(ids)
    assert len(asked) == 2
    use_backends(model, choose_attention(ids.device, torch.float32, "sdpa"))
    model(ids)
    assert len(asked) == 2
