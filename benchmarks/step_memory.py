"""Peak memory of a training step: of a real one by allocator and resident set, of any by fake
tensors, without memory.

The step is the one of `lit_llm.training`: float32 weights, autocast, the loss, the optimizer. Fake
tensors run the CPU's operators (a CPU build of torch has no others): what CUDA does otherwise, one
kernel for RMSNorm, is not in it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import resident
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_llm.models.config import TransformerConfig
from lit_llm.models.lora import LoRAConfig, apply_lora
from lit_llm.models.meta import meta_transformer
from lit_llm.models.transformer import Transformer
from lit_llm.training.optimizers import MuonAdamW, parameter_groups


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key, 0)


@contextlib.contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """torch.autocast, whose own context manager asks the device things that fake tensors cannot
    answer."""
    if not enabled:
        yield
        return
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cpu", False)


def simulated_peak(
    config: TransformerConfig,
    batch: int,
    seq_len: int,
    optimizer: str,
    autocast: bool,
    lora: bool = False,
) -> int:
    """Bytes at the peak of the second step, when the optimizer's states are there."""
    empty = meta_transformer(config)
    if lora and autocast:
        empty.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        model = empty.to_empty(device="cpu")
        if config.tie_embeddings:
            model.head.weight = model.embed.weight  # to_empty gives each name a tensor of its own
        if lora:
            apply_lora(model, LoRAConfig())
        stepper = (
            torch.optim.AdamW(model.parameters(), fused=True)
            if optimizer == "adamw"
            else MuonAdamW(parameter_groups(model, optimizer, 0.02, 0.0))
        )
        if isinstance(stepper, MuonAdamW):
            stepper.find_rows = False  # fake gradients do not say which rows of a table were used
        ids = torch.zeros(batch, seq_len, dtype=torch.long)
        for _ in range(2):
            memory.peak = memory.live
            with _autocast(autocast):
                loss = model.loss(ids, ids)
            loss.backward()
            del loss
            peak = memory.peak
            stepper.step()
            stepper.zero_grad()
    return peak


def real_peak(
    config: TransformerConfig, batch: int, seq_len: int, autocast: bool
) -> dict[str, int]:
    """Bytes at the peak of two real steps with AdamW on this CPU.

    Returns:
        allocated: by torch's allocator, from its own record of every allocation.
        resident: how much the process grew by: what libraries and malloc keep besides.
    """
    tiny = torch.randn(
        64, 64, requires_grad=True
    )  # libraries start their threads and buffers before the count
    (tiny @ tiny).sum().backward()
    torch.optim.AdamW([tiny], fused=True).step()
    before = resident.begin()
    _two_steps(config, batch, seq_len, autocast)
    grown = resident.peak() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        _two_steps(config, batch, seq_len, autocast)
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    live = peak = 0
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return {"allocated": peak, "resident": grown}


def _two_steps(config: TransformerConfig, batch: int, seq_len: int, autocast: bool) -> None:
    model = Transformer(config)
    stepper = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, config.vocab_size, (batch, seq_len))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss(ids, ids)
        loss.backward()
        del loss
        stepper.step()
        stepper.zero_grad()
