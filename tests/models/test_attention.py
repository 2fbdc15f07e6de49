"""What computes attention, against the plain sum in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import attention
from torch.nn.attention import SDPBackend, flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from lit_llm.errors import UserError
from lit_llm.models.attention import Attention, KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.head import LMHead
from lit_llm.models.kernels import backends as backends_module
from lit_llm.models.kernels.backends import Backends, choose_attention
from lit_llm.models.masks import BLOCK, build_block_mask, build_mask, build_masks
from lit_llm.models.parallel.parallelize import parallelize
from lit_llm.models.transformer import Transformer

CPU = torch.device("cpu")
FLEX = Backends(causal="flex", masked="flex")


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention's own uncompiled formula, which has a backward pass on the CPU behind a check
    that refuses it; and compiled models as graphs that run it."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(backends_module, "_flex_attention", flex_attention.flex_attention)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None, scale: float | None,
    documents: Tensor | None, padding: Tensor | None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T scale + mask) v, a query head at a time, (B, H, T, D) with k and v (B, K, T,
    D)."""
    B, H, T, D = q.shape
    y = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            kv = h // (H // k.shape[1])
            scores = q[b, h] @ k[b, kv].T * (D**-0.5 if scale is None else scale)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            for i in range(T):
                seen = [
                    j for j in range(i + 1)
                    if (window is None or i - j < window)
                    and (documents is None or documents[b, i] == documents[b, j])
                    and (padding is None or bool(padding[b, j]) or i == j)
                ]  # fmt: skip
                y[b, h, i] = scores[i, seen].softmax(0) @ v[b, kv, seen]
    return y


def document_ids(lengths: list[list[int]], T: int) -> Tensor:
    """Rows of documents of these lengths, the last of each as long as the row still is."""
    rows = []
    for row in lengths:
        ids = [number for number, length in enumerate(row) for _ in range(length)]
        rows.append((ids + [len(row)] * T)[:T])
    return torch.tensor(rows)


LENGTHS = st.lists(
    st.lists(st.one_of(st.just(1), st.integers(1, 30)), max_size=12), min_size=2, max_size=2
)


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@given(
    lengths=st.one_of(st.none(), LENGTHS),
    T=st.integers(1, 24),
    kv_heads=st.sampled_from([1, 2, 4]),
    window=st.one_of(st.none(), st.integers(1, 26)),
    softcap=st.one_of(st.none(), st.just(2.0)),
    scale=st.one_of(st.none(), st.just(0.7)),
    padded=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_is_the_plain_sum(
    backend: str, lengths: list[list[int]] | None, T: int, kv_heads: int, window: int | None,
    softcap: float | None, scale: float | None, padded: int,
) -> None:  # fmt: skip
    config = TransformerConfig(
        hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=kv_heads, sliding_window=window,
        attention_softcap=softcap, attention_scale=scale,
    )  # fmt: skip
    documents = None if lengths is None else document_ids(lengths, T)
    padding = None
    if (
        padded and documents is None and backend == "sdpa"
    ):  # FlexAttention is for training, which pads nothing
        padding = torch.ones(2, T, dtype=torch.bool)
        padding[0, :padded] = False
    inputs = [torch.randn(2, heads, T, 8, dtype=torch.float64) for heads in (4, kv_heads, kv_heads)]
    cotangent = torch.randn(2, 4, T, 8, dtype=torch.float64)
    choice = FLEX if backend == "flex" else Backends()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
        patch.setattr(backends_module, "_flex_attention", flex_attention.flex_attention)
        ids = torch.zeros(2, T, dtype=torch.long)
        forest = None if documents is None else Forest.of_documents(documents)
        mask = build_masks(config, choice, ids, 0, padding, forest)[config.window(0)]
        layer = Attention(config, 0)
        got = _with_gradients(lambda q, k, v: layer.attend(q, k, v, mask), inputs, cotangent)
    expected = _with_gradients(
        lambda q, k, v: attend_plainly(q, k, v, window, softcap, scale, documents, padding),
        inputs,
        cotangent,
    )
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def _with_gradients(function: Any, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    y.backward(cotangent)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@given(
    lengths=st.lists(
        st.lists(st.one_of(st.just(1), st.integers(1, 300)), max_size=12), min_size=2, max_size=2
    ),
    T=st.one_of(st.just(3 * BLOCK), st.integers(1, 3 * BLOCK)),
    window=st.one_of(st.none(), st.integers(1, 300)),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_block_mask_is_what_create_block_mask_makes(
    lengths: list[list[int]], T: int, window: int | None, masked: bool
) -> None:
    forest = Forest.of_documents(document_ids(lengths, T)) if masked else None
    mask = build_block_mask(torch.zeros(2, T, dtype=torch.long), window, forest)
    dense = build_mask(T, T, window, None, CPU, forest)
    dense = torch.ones(T, T, dtype=torch.bool).tril() if dense is None else dense
    dense = dense.expand(2, 1, T, T)
    theirs = create_block_mask(lambda b, h, q, k: dense[b, 0, q, k], 2, 1, T, T, device="cpu")
    assert torch.equal(mask.to_dense(), theirs.to_dense())
    for ours, other in ((mask.kv_num_blocks, theirs.kv_num_blocks),
                        (mask.kv_indices, theirs.kv_indices),
                        (mask.full_kv_num_blocks, theirs.full_kv_num_blocks),
                        (mask.full_kv_indices, theirs.full_kv_indices),
                        (mask.q_num_blocks, theirs.q_num_blocks),
                        (mask.full_q_indices, theirs.full_q_indices)):  # fmt: skip
        assert (
            ours is not None
            and other is not None
            and torch.equal(ours, other)
            and ours.dtype == other.dtype
        )
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(T), torch.arange(T), indexing="ij")
    assert torch.equal(mask.mask_mod(b, torch.zeros(()), q, k), dense[:, 0])


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    "choice", [Backends(), Backends(causal="cudnn", masked="flex"), FLEX], ids=str
)
@pytest.mark.usefixtures("flex_on_cpu")
def test_compiled_blocks_are_whole_graphs(choice: Backends, documents: bool) -> None:
    model, plain = _two_models(choice, compile=True)
    model.lm_head = LMHead(model.config, model.head)  # not compiled: the blocks are looked at
    counter = CompileCounter()
    for block in model.layers:
        block.compile(fullgraph=True, dynamic=False, backend=counter)
    _assert_equal_gradients(model, plain, documents)
    graphs = counter.frame_count
    _assert_equal_gradients(
        model, plain, documents
    )  # another batch is another mask, not another graph
    assert 1 <= counter.frame_count == graphs <= 2


@pytest.mark.usefixtures("flex_on_cpu")
def test_recomputed_blocks() -> None:
    _assert_equal_gradients(*_two_models(FLEX, activation_checkpointing=1.0), documents=True)


def _two_models(choice: Backends, **options: Any) -> tuple[Transformer, Transformer]:
    """With and without ``choice``, of equal weights."""
    config = TransformerConfig(
        vocab_size=40, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, sliding_window=40,
        sliding_layers=[0, 1]
    )  # fmt: skip
    plain, model = Transformer(config), Transformer(config)
    for block in plain.layers:
        torch.nn.init.normal_(
            block.attention.o_proj.weight, std=0.1
        )  # zero at first: nothing attended
    model.load_state_dict(plain.state_dict())
    parallelize(model, backends=choice, **options)
    return model, plain


def _assert_equal_gradients(model: Transformer, plain: Transformer, documents: bool) -> None:
    ids, lengths = torch.randint(0, 40, (2, 128)), torch.randint(1, 60, (2, 6)).tolist()
    results = []
    for each in (model, plain):
        each.zero_grad()
        loss = each.loss(ids, ids, document_ids(lengths, 128) if documents else None)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in each.parameters())])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("flex_on_cpu")
def test_block_masks_are_for_training_without_cache_and_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = _two_models(FLEX)
    used = []
    monkeypatch.setattr(
        backends_module, "_flex_attention", lambda q, k, v, **_: used.append(1) or q
    )
    ids = torch.randint(0, 40, (2, 9))
    model(ids, padding_mask=torch.ones(2, 9, dtype=torch.bool))
    model(ids, cache=KVCache(model.config, 2, 9, CPU, torch.float32))
    model.eval()(ids)
    assert not used
    model.train()(ids)
    assert len(used) == 3


def test_sdpa_tries_kernels_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []

    def sdpa(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        orders.append(torch._C._get_sdp_priority_order()[0])
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    before = torch._C._get_sdp_priority_order()
    model, _ = _two_models(Backends(causal="cudnn"))
    model(torch.zeros(1, 128, dtype=torch.long))  # two layers with a window, one without
    assert orders == [before[0], before[0], SDPBackend.CUDNN_ATTENTION.value]
    orders.clear()
    model(torch.zeros(1, 130, dtype=torch.long))
    assert orders == [before[0]] * 3 and torch._C._get_sdp_priority_order() == before


Call = dict[str, Any]


@pytest.fixture
def sdpa_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What SDPA is called with, and whether it may take cuDNN's kernel."""
    calls: list[Call] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        calls.append({"q": q.shape, "k": k.shape, "cudnn": cudnn, **options})
        return real(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    return calls


@pytest.mark.parametrize("choice", [Backends(), Backends(causal="cudnn")], ids=str)
def test_cudnn_has_no_part_outside_training_and_with_a_mask(
    sdpa_calls: list[Call], choice: Backends
) -> None:
    model, _ = _two_models(choice)  # two layers with a window, one without
    real = torch.ones(2, 129, dtype=torch.bool)
    for train, length, padding, past, expected in [
        (True, 128, None, None, [False, False, True]),
        (True, 130, None, None, [False] * 3),
        (True, 128, real[:, :128], None, [False] * 3),
        (False, 128, None, None, [False] * 3),
        (False, 100, None, None, [False] * 3),
        (False, 128, None, 0, [False] * 3),
        (False, 1, None, 128, [False] * 3),
        (False, 1, real, 128, [False] * 3),
    ]:
        cache = None if past is None else KVCache(model.config, 2, 130, CPU, torch.float32)
        if cache is not None:
            cache.length = past or 0
        sdpa_calls.clear()
        ids = torch.zeros(2, length, dtype=torch.long)
        model.train(train)(ids, padding_mask=padding, cache=cache)
        assert [call["cudnn"] for call in sdpa_calls] == expected
        assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_callers_own_choice_of_kernels_is_kept() -> None:
    def allowed() -> tuple[bool, bool, bool]:
        with backends_module.without_cudnn():
            flags = torch.backends.cuda
            return flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled(), flags.math_sdp_enabled()

    for kernels, expected in [
        ([SDPBackend.CUDNN_ATTENTION], (True, False, False)),
        ([SDPBackend.MATH], (False, False, True)),
        ([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH], (False, False, True)),
    ]:
        with attention.sdpa_kernel(kernels):
            assert allowed() == expected
    assert allowed() == (False, True, True)


def test_a_single_query_has_no_mask(sdpa_calls: list[Call]) -> None:
    model, _ = _two_models(Backends())
    cache = KVCache(model.config, 2, 60, CPU, torch.float32)
    cache.length = 50
    model.eval()(torch.zeros(2, 1, dtype=torch.long), cache=cache)
    for call, keys in zip(sdpa_calls, (40, 40, 51), strict=True):
        assert call["attn_mask"] is None and not call.get("is_causal")
        # Four query heads of two key heads, as rows: no kernel needs repeated keys for them.
        assert call["q"] == (2, 2, 2, 8) and call["k"] == (2, 2, keys, 8)
        assert not call.get("enable_gqa")


def test_masked_groups_on_a_gpu_are_spread(sdpa_calls: list[Call]) -> None:
    """torch's one kernel for masks there takes no groups; the math kernel writes all scores out."""
    config = TransformerConfig(hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2)
    layer = Attention(config, 0).eval()
    with FakeTensorMode():
        q, k, v = (torch.empty(2, heads, 9, 8, device="cuda") for heads in (4, 2, 2))
        layer.attend(q, k, v, torch.empty(9, 9, dtype=torch.bool, device="cuda"))
        layer.attend(q, k, v, None)
    masked, causal = sdpa_calls
    assert masked["k"] == (2, 4, 9, 8) and not masked["enable_gqa"]
    assert causal["k"] == (2, 2, 9, 8) and causal["enable_gqa"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_kv_heads": 4},
        {"sliding_window": 3},
        {"sliding_window": 3, "attention_softcap": 2.0},
    ],
    ids=str,
)
def test_token_by_token_is_all_at_once(fields: dict[str, Any], padded: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**{
        "vocab_size": 40, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        **fields
    })).eval()  # fmt: skip
    for block in model.layers:
        torch.nn.init.normal_(block.attention.o_proj.weight, std=0.3)  # zero at first
    ids, real = torch.randint(0, 40, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    real[0, :4] = not padded
    whole = model(ids, padding_mask=real if padded else None)
    cache = KVCache(model.config, 2, 9, CPU, torch.float32)
    for at in range(9):
        mask = real[:, : at + 1] if padded else None
        logits = model(ids[:, at : at + 1], padding_mask=mask, cache=cache)
        torch.testing.assert_close(logits[real[:, at], 0], whole[real[:, at], at])


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    *,
    triton: bool = True,
    fa3: bool = False,
) -> None:
    """That there is a GPU of this capability, with these packages."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(backends_module, "can_compile", lambda device: triton)
    monkeypatch.setattr(backends_module, "find_spec", lambda name: object() if fa3 else None)
    monkeypatch.setattr(attention, "list_flash_attention_impls", lambda: ["FA3", "FA4"])


CUDA = torch.device("cuda", 0)


def test_choice_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(choose_attention(CPU, torch.bfloat16)) == "blocks"
    assert str(choose_attention(CPU, torch.bfloat16, "sdpa")) == "sdpa"
    for capability, fa3, dtype, expected in [
        ((9, 0), False, torch.bfloat16, "cudnn"), ((9, 0), True, torch.bfloat16, "flash3"),
        ((9, 0), True, torch.float32, "sdpa"), ((10, 0), True, torch.float16, "cudnn"),
        ((8, 0), True, torch.bfloat16, "sdpa"), ((7, 5), False, torch.float16, "sdpa"),
    ]:  # fmt: skip
        pretend(monkeypatch, capability, fa3=fa3)
        choice = choose_attention(CUDA, dtype)
        assert choice == Backends(expected, "flex")  # type: ignore[arg-type]
        assert str(choice) == f"{expected}; flex for windows, documents and soft caps"
    pretend(monkeypatch, (9, 0), triton=False)
    assert choose_attention(CUDA, torch.bfloat16) == Backends("cudnn", "sdpa")
    pretend(monkeypatch, (9, 0), fa3=True)
    assert choose_attention(CUDA, torch.bfloat16, "sdpa") == Backends()
    assert choose_attention(CUDA, torch.bfloat16, "cudnn") == Backends("cudnn", "flex")
    assert choose_attention(CUDA, torch.bfloat16, "flash3") == Backends("flash3", "flex")
    assert choose_attention(CUDA, torch.bfloat16, "flex") == FLEX


@pytest.mark.parametrize(
    ("wanted", "needs"), [("cudnn", "since Ampere"), ("flash3", "Hopper GPU"), ("flex", "Triton")]
)  # fmt: skip
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, needs: str
) -> None:
    with pytest.raises(
        UserError, match=f"model.attention={wanted} needs .*{needs}.*; set it to auto"
    ):
        choose_attention(CPU, torch.bfloat16, wanted)
    pretend(monkeypatch, (7, 0), triton=False)
    with pytest.raises(UserError, match=needs):
        choose_attention(CUDA, torch.bfloat16, wanted)
    with pytest.raises(UserError, match="attention=blocks needs a CPU; set it to auto"):
        choose_attention(CUDA, torch.bfloat16, "blocks")


def test_flash3_takes_the_place_of_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[str] = []
    monkeypatch.setattr(attention, "activate_flash_attention_impl", activated.append)
    model, _ = _two_models(Backends(causal="flash3"))
    assert activated == ["FA3"]
    assert model.layers[2].attention.kernel_order[0] == SDPBackend.FLASH_ATTENTION
