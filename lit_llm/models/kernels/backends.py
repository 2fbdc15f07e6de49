"""Choice of the attention kernels.

For training the kernels are chosen once, at the start of a run. Outside of training, cuDNN's kernel
is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.backends import cuda
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lit_llm.errors import UserError
from lit_llm.models.kernels.device import can_compile

Backend = Literal["sdpa", "blocks", "cudnn", "flash3", "flex"]
_HALF = (torch.bfloat16, torch.float16)
_REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, *_REST]
_ORDERS = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION, *_WITHOUT_CUDNN],
    "flash3": _WITHOUT_CUDNN,
}
_NEEDS = {
    "blocks": "a CPU",
    "cudnn": "an NVIDIA GPU since Ampere and trainer.precision bf16 or 16",
    "flash3": "a Hopper GPU, trainer.precision bf16 or 16, and FlashAttention 3 (the module "
    "flash_attn_interface)",
    "flex": "a GPU with Triton",
}


@dataclass(frozen=True)
class Backends:
    """The kernels that compute a layer's attention.

    - "sdpa": torch's ``scaled_dot_product_attention`` with torch's own order of kernels
    - "cudnn": SDPA with cuDNN's kernel before the others
    - "flash3": SDPA with FlashAttention 3 instead of torch's flash kernel
    - "flex": FlexAttention, compiled
    - "blocks": `BlockedAttention` where it applies, else "sdpa"
    """

    causal: Backend = "sdpa"
    """For layers that see all previous tokens."""
    masked: Literal["sdpa", "flex", "blocks"] = "sdpa"
    """For layers with a window or a soft cap, and for all layers if rows hold several documents.

    SDPA reads a mask of T x T per row there. "blocks" is `forest_attention` on a CPU, else "sdpa".
    Both leave soft caps to plain operations, which write the scores to memory.
    """

    def __str__(self) -> str:
        if self.causal == self.masked:
            return self.causal
        return f"{self.causal}; {self.masked} for windows, documents and soft caps"

    def for_evaluation(self) -> Backends:
        """These kernels without FlexAttention.

        Evaluation runs uncompiled, and there FlexAttention would hold all scores in memory.
        """
        return Backends(
            "sdpa" if self.causal == "flex" else self.causal,
            "sdpa" if self.masked == "flex" else self.masked,
        )

    @property
    def kernel_order(self) -> list[SDPBackend] | None:
        """Kernels that SDPA tries in turn on causal layers; None: torch's own order."""
        return _ORDERS.get(self.causal)


BLOCKS = Backends("blocks", "blocks")
"""The kernels of a CPU; elsewhere they are SDPA's."""


def choose_attention(
    device: torch.device, dtype: torch.dtype, wanted: Backend | Literal["auto"] = "auto"
) -> Backends:
    """Choose the fastest kernels of ``device`` for activations of ``dtype``.

    ``wanted`` fixes the kernel of causal layers; "sdpa" and "flex" fix the kernel of all layers.

    FlashAttention 3 goes before cuDNN, because whoever has its package has built it for this
    purpose. cuDNN goes first only on Hopper and Blackwell. torch prefers cuDNN there too, but only
    from cuDNN 9.15.1 on, which torch's builds for CUDA 12 do not contain.

    Raises:
        UserError: this machine does not support ``wanted``.
    """
    if wanted != "auto" and not _possible(wanted, device, dtype):
        raise UserError(f"model.attention={wanted} needs {_NEEDS[wanted]}; set it to auto")
    if wanted == "sdpa":
        return Backends()
    if _possible("blocks", device, dtype):
        return BLOCKS
    masked: Literal["sdpa", "flex"] = "flex" if _possible("flex", device, dtype) else "sdpa"
    if wanted != "auto":
        return Backends(wanted, masked)
    if _possible("flash3", device, dtype):
        return Backends("flash3", masked)
    if _possible("cudnn", device, dtype) and torch.cuda.get_device_capability(device)[0] in (9, 10):
        return Backends("cudnn", masked)
    return Backends("sdpa", masked)


def _possible(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    if backend == "sdpa":
        return True
    if backend == "blocks":
        return device.type == "cpu"
    if device.type != "cuda":
        return False
    if backend == "flex":
        return can_compile(device)
    capability = torch.cuda.get_device_capability(device)
    if backend == "cudnn":
        return dtype in _HALF and capability >= (8, 0) and torch.backends.cudnn.is_available()
    # FlashAttention 3 from the `kernels` package is not used: torch finds it only under that
    # package's own name, and a run would download whatever version the hub has that day.
    known = "FA3" in getattr(attention, "list_flash_attention_impls", list)()
    return (
        dtype in _HALF and capability[0] == 9 and known and bool(find_spec("flash_attn_interface"))
    )


def without_cudnn() -> AbstractContextManager[Any]:
    """Context manager in which SDPA does not use cuDNN's kernel.

    From torch 2.11 on SDPA prefers that kernel on Hopper and Blackwell. But cuDNN makes a plan for
    every new shape, which takes much longer than attention itself, and in generation the number of
    keys changes at every token. With a mask its gradients are NaN at some lengths
    (https://github.com/pytorch/pytorch/issues/196678). cuDNN's kernel is therefore used only for
    training without a mask.
    """
    # torch's own context manager takes 16 microseconds, which is too long for each layer of each
    # token. But it is the only one that the compiler understands.
    return sdpa_kernel(_WITHOUT_CUDNN) if torch.compiler.is_compiling() else _cudnn_off()


@contextmanager
def _cudnn_off() -> Iterator[None]:
    # If the caller has restricted SDPA to cuDNN's kernel with `sdpa_kernel`, that choice stays.
    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(before and not cuda.math_sdp_enabled())
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(before)


# Compiled here for uncompiled models: without compilation FlexAttention holds all scores in memory.
# Inside a compiled block it becomes part of the block's graph.
_flex_attention = torch.compile(flex_attention)


def flex(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    mask: BlockMask,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Weighted values (B, H, T, D) by FlexAttention (arXiv:2412.05496).

    With ``softcap`` the scores are squashed to (-softcap, softcap).
    """

    def squash(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    return _flex_attention(
        q_BHTD,
        k_BKTD,
        v_BKTD,
        score_mod=None if softcap is None else squash,
        block_mask=mask,
        scale=scale,
        enable_gqa=q_BHTD.shape[1] != k_BKTD.shape[1],
    )
