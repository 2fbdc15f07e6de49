"""Which keys a query may see: what attention is told of it.

``Mask`` is what a block gets: None, where every query sees all keys before it and itself; a bool
tensor, True where a key is seen, (T, S) or (B, 1, T, S); or FlexAttention's `BlockMask`, whose
masked blocks are skipped. Its type decides which kernel computes a layer.

Shapes: B batch, T query positions, S key positions, N blocks of positions.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.backends import Backends
from lit_llm.models.rope import positions_in_documents

Mask: TypeAlias = Tensor | BlockMask | None
BLOCK = 128
"""Positions a block of a `BlockMask`: what FlexAttention's kernels are tuned for."""


def build_masks(
    config: TransformerConfig,
    backends: Backends,
    input_ids: Tensor,
    past: int,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
) -> dict[int | None, Mask]:
    """The mask of each kind of layer, by its window, for tokens (B, T) behind ``past`` cached
    ones."""
    T = input_ids.shape[1]

    def build(window: int | None) -> Mask:
        masked = (
            document_ids is not None
            or config.attention_softcap is not None
            or (window is not None and window < T)
        )
        if padding_mask is None and (backends.masked if masked else backends.causal) == "flex":
            return build_block_mask(input_ids, window, document_ids)
        return build_mask(T, past + T, window, padding_mask, input_ids.device, document_ids)

    return {
        window: build(window) for window in {config.window(i) for i in range(config.num_layers)}
    }


def build_mask(
    query_len: int,
    key_len: int,
    window: int | None,
    padding_mask: Tensor | None,
    device: torch.device,
    document_ids: Tensor | None = None,
) -> Tensor | None:
    """Which keys each query may see: bool (T, S), or (B, 1, T, S) with padding or documents; True
    is visible.

    ``padding_mask`` is bool (B, S), True for real tokens; ``document_ids`` int64 (B, T), with T =
    S, keeps documents apart. None means that each query sees all keys up to its own. A single query
    behind cached keys needs no mask for a window either: `Attention` leaves out the keys before the
    window.
    """
    if padding_mask is None and document_ids is None:
        whole = query_len == key_len and (window is None or window >= key_len)
        if whole or query_len == 1:
            return None
    queries = torch.arange(key_len - query_len, key_len, device=device)[:, None]
    keys = torch.arange(key_len, device=device)[None]
    mask = keys <= queries
    if window is not None:
        mask = mask & (keys > queries - window)
    if document_ids is not None:
        return mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if padding_mask is None:
        return mask
    # A padded query sees itself, so that its softmax has a term: a row of -inf would be NaN and
    # spread to the batch.
    return (mask & padding_mask[:, None, None, :]) | (keys == queries)


def build_block_mask(
    input_ids: Tensor, window: int | None, document_ids: Tensor | None
) -> BlockMask:
    """The mask of tokens (B, T) that `build_mask` makes without padding and cache, for
    FlexAttention.

    Causality, windows and documents together let a query see the keys from some first one up to
    itself, and that first key never moves back from one query to the next. So the blocks follow
    from two queries of each, with no look at the T x T pairs that ``create_block_mask`` goes
    through, and no compiler; nothing here waits for the device.
    """
    B, T = input_ids.shape
    positions_T = torch.arange(T, device=input_ids.device)
    first_BT = positions_T.new_zeros(B, T)
    if document_ids is not None:
        first_BT = positions_T - positions_in_documents(document_ids)
    if window is not None:
        first_BT = first_BT.maximum(positions_T - window + 1)
    first_BT = first_BT.int().contiguous()

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_BT[batch, query])

    keys_N = torch.arange(-(-T // BLOCK), device=input_ids.device)
    queries_N1 = keys_N[:, None]
    lowest_BN1 = first_BT[:, ::BLOCK, None]
    highest_BN1 = first_BT[:, BLOCK - 1 :: BLOCK, None]
    if T % BLOCK:  # the last block ends with the last query
        highest_BN1 = torch.cat((highest_BN1, first_BT[:, -1:, None]), 1)
    touched_BNN = (keys_N <= queries_N1) & ((keys_N + 1) * BLOCK > lowest_BN1)
    full_BNN = (
        (keys_N < queries_N1) & (keys_N * BLOCK >= highest_BN1) & ((queries_N1 + 1) * BLOCK <= T)
    )
    return BlockMask.from_kv_blocks(
        *_listed(touched_BNN & ~full_BNN),
        *_listed(full_BNN),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(T, T),
    )


def _listed(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks are chosen for each query block, and which: int32 (B, 1, N) and (B, 1, N,
    N), the chosen ones first and in order, the rest after them."""
    blocks = blocks_BNN[:, None].int()
    return blocks.sum(-1, dtype=torch.int32), blocks.argsort(
        dim=-1, descending=True, stable=True
    ).int()
