"""Does an answer have the same bits in any company, on this machine?

That depends on the kernels that its libraries choose for a shape, which differ between processors.
`check` finds out: it compares the rows of every product of the model between batches of different
sizes, and then whole answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    SamplingSettings,
)
from lit_llm.models.engine.rows import ROWS, row_step
from lit_llm.models.engine.slots import SMALLEST
from lit_llm.models.kernels.packed import packs
from lit_llm.models.transformer import Transformer

_ANSWERS, _NEW = 8, 8


@dataclass(frozen=True)
class SameBits:
    """What `check` found."""

    products: dict[torch.dtype, list[str]]
    """The products of each dtype in which a row's result depends on the other rows."""
    answers: int
    """Number of answers that the model gave alone and in company."""
    changed: int
    """Number of those whose tokens or log-probabilities were not equal, bit for bit."""
    dtype: torch.dtype
    """Of the model, and so of the answers."""

    @property
    def holds(self) -> bool:
        """Whether no answer of this model depends on its company."""
        return not self.changed and not self.products.get(self.dtype)

    def lines(self) -> Iterator[str]:
        """Yield what was found, for a person."""
        for dtype, found in self.products.items():
            name = str(dtype).removeprefix("torch.")
            said = "same bits in any company" if not found else f"not for {', '.join(found)}"
            yield f"{name}: {said}"
        name = str(self.dtype).removeprefix("torch.")
        yield f"{self.changed} of {self.answers} answers in {name} changed in company"


@torch.inference_mode()
def check(model: Transformer) -> SameBits:
    """Compare products and answers alone and in company; about ten seconds for a small model.

    The model's weights are packed, as by `Engine`. Products are compared in the model's dtype and,
    on a CPU, in bfloat16 and float32.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    alone = [_answers(model, [request])[0] for request in _requests(model)]
    together = _answers(model, _requests(model))
    changed = sum(a != b for a, b in zip(alone, together, strict=True))
    dtypes = {dtype, torch.bfloat16, torch.float32} if device.type == "cpu" else {dtype}
    products = {each: list(_changed_products(model, each)) for each in sorted(dtypes, key=str)}
    return SameBits(products, len(alone), changed, dtype)


def _requests(model: Transformer) -> list[GenerationRequest]:
    V, most = model.config.vocab_size, model.config.max_seq_len - _NEW
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, min(most, 200) + 1, (_ANSWERS,), generator=generator).tolist()
    return [
        GenerationRequest(
            torch.randint(0, V, (length,), generator=generator).tolist(),
            _NEW,
            SamplingSettings(),
            seed=number,
            top_logprobs=5,
        )
        for number, length in enumerate(lengths)
    ]


def _answers(model: Transformer, requests: list[GenerationRequest]) -> list[list[Event]]:
    engine = Engine(model, len(requests) * 2 * max(SMALLEST, 512))
    events: list[list[Event]] = [[] for _ in requests]
    for request, found in zip(requests, events, strict=True):
        engine.add(request, found.append)
    while engine.busy:
        engine.step()
    assert all(isinstance(found[-1], Finished) for found in events)
    return events


def _changed_products(model: Transformer, dtype: torch.dtype) -> Iterator[str]:
    """Names of the products whose rows depend on other rows."""
    device = model.embed.weight.device
    shapes = {
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    for size, out in sorted(shapes):
        weight = torch.randn(out, size, device=device).div_(size**0.5).to(dtype)
        rows = torch.randn(ROWS, size, device=device).to(dtype)
        if packs(weight):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        if _rows_change(rows, weight, row_step(model.config, adapters=False)):
            yield f"{size} x {out}"
    config = model.config
    assert config.num_kv_heads is not None and config.head_dim is not None
    K, G, D = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    queries = torch.randn(ROWS * K, G, D, device=device).to(dtype)
    keys = torch.randn(ROWS * K, SMALLEST, D, device=device).to(dtype)
    whole = _attention(queries, keys)
    for slots in (1, 2, 3, 7, 20):
        if not torch.equal(_attention(queries[: slots * K], keys[: slots * K]), whole[: slots * K]):
            yield f"attention of {K} x {G} heads"
            return


def _rows_change(rows: Tensor, weight: Tensor, step: int) -> bool:
    whole = _linear(rows, weight)
    return any(
        not torch.equal(_linear(rows[begin : begin + count], weight), whole[begin : begin + count])
        for count in range(step, ROWS, step)
        for begin in (0, 1, ROWS - count)
    )


def _linear(rows: Tensor, weight: Tensor) -> Tensor:
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return F.linear(rows, weight)


def _attention(queries: Tensor, keys: Tensor) -> Tensor:
    scores = torch.bmm(keys, queries.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(scores.float().softmax(-1).to(keys.dtype), keys)
