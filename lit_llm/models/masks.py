"""Attention masks: which keys a query may see.

`Mask` is what a block receives. It is one of three:

- None: every query sees all keys up to and including its own position;
- a bool tensor (T, S) or (B, 1, T, S), True where a key is visible;
- FlexAttention's `BlockMask`, whose fully masked blocks are skipped.

The type of the mask decides which kernel computes a layer.

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
"""Positions in a block of a `BlockMask`; FlexAttention's kernels are tuned for this size."""


def build_masks(
    config: TransformerConfig,
    backends: Backends,
    input_ids: Tensor,
    past: int,
    padding_mask: Tensor | None,
    document_ids: Tensor | None,
) -> dict[int | None, Mask]:
    """Build the mask of each kind of layer, keyed by the layer's window.

    The masks are for tokens (B, T) that follow ``past`` cached tokens.
    """
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
    """Build a bool mask (T, S), or (B, 1, T, S) with padding or documents; True is visible.

    ``padding_mask`` is bool (B, S), True for real tokens. ``document_ids`` int64 (B, T), with T =
    S, keeps documents apart. None is returned when each query sees all keys up to its own. A single
    query after cached keys needs no mask for a window either: `Attention` drops the keys before the
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
    # A padded query sees itself, so that its softmax has at least one term. A row of -inf would
    # give NaN, which spreads to the whole batch.
    return (mask & padding_mask[:, None, None, :]) | (keys == queries)


def build_block_mask(
    input_ids: Tensor, window: int | None, document_ids: Tensor | None
) -> BlockMask:
    """Build for FlexAttention the mask of `build_mask` without padding and cache.

    With causality, windows and documents together, a query sees a contiguous range of keys: from
    some first key up to itself. This first key never moves back from one query to the next. The
    blocks therefore follow from the first and the last query of each block. There is no pass over
    the T x T pairs as in ``create_block_mask``, no compiler, and nothing waits for the device.
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
    # lowest and highest are the first visible key of a block's first and last query. A key block is
    # touched if any of its keys is visible to any query of the query block, and full if all keys
    # are visible to all queries. Full blocks skip the element-wise test of `visible`.
    lowest_BN1 = first_BT[:, ::BLOCK, None]
    highest_BN1 = first_BT[:, BLOCK - 1 :: BLOCK, None]
    if T % BLOCK:
        # The last block ends with the last query.
        highest_BN1 = torch.cat((highest_BN1, first_BT[:, -1:, None]), 1)
    touched_BNN = (keys_N <= queries_N1) & ((keys_N + 1) * BLOCK > lowest_BN1)
    full_BNN = (
        (keys_N < queries_N1) & (keys_N * BLOCK >= highest_BN1) & ((queries_N1 + 1) * BLOCK <= T)
    )
    return BlockMask.from_kv_blocks(
        *_block_lists(touched_BNN & ~full_BNN),
        *_block_lists(full_BNN),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(T, T),
    )


def _block_lists(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each query block the number of chosen key blocks and their indices.

    The shapes are int32 (B, 1, N) and (B, 1, N, N). In each row the chosen blocks come first, in
    order, and the other blocks follow.
    """
    blocks = blocks_BNN[:, None].int()
    return blocks.sum(-1, dtype=torch.int32), blocks.argsort(
        dim=-1, descending=True, stable=True
    ).int()
