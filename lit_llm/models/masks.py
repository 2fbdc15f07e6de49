"""Attention masks: which keys a query may see.

`Mask` is what a block receives. It is one of four:

- None: every query sees all keys up to and including its own position;
- a bool tensor (T, S) or (B, 1, T, S), True where a key is visible;
- FlexAttention's `BlockMask`, whose fully masked blocks are skipped;
- a `ForestMask`, for `forest_attention` on a CPU.

The type of the mask decides which kernel computes a layer.

Shapes: B batch, T query positions, S key positions, N blocks of positions.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.kernels.backends import Backends


class ForestMask(NamedTuple):
    """The mask of a `Forest` in a layer with ``window`` (None: without)."""

    until: Tensor
    position: Tensor
    window: int | None

    def dense(self) -> Tensor:
        """The same mask as a bool tensor (B, 1, T, T)."""
        return Forest(self.until, self.position).visible(self.window)


Mask: TypeAlias = Tensor | BlockMask | ForestMask | None
BLOCK = 128
"""Positions in a block of a `BlockMask`; FlexAttention's kernels are tuned for this size."""


def build_masks(
    config: TransformerConfig,
    backends: Backends,
    input_ids: Tensor,
    past: int,
    padding_mask: Tensor | None,
    forest: Forest | None,
) -> dict[int | None, Mask]:
    """Build the mask of each kind of layer, keyed by the layer's window.

    The masks are for tokens (B, T) that follow ``past`` cached tokens.
    """
    T = input_ids.shape[1]
    plain = padding_mask is None and past == 0

    def build(window: int | None) -> Mask:
        windowed = window is not None and window < T
        masked = forest is not None or config.attention_softcap is not None or windowed
        if padding_mask is None and (backends.masked if masked else backends.causal) == "flex":
            return build_block_mask(input_ids, window, forest)
        by_blocks = backends.masked == "blocks" and input_ids.device.type == "cpu"
        if by_blocks and plain and (forest is not None or windowed):
            return ForestMask(*(forest or Forest.of_rows(input_ids)), window)
        return build_mask(T, past + T, window, padding_mask, input_ids.device, forest)

    return {
        window: build(window) for window in {config.window(i) for i in range(config.num_layers)}
    }


def build_mask(
    query_len: int,
    key_len: int,
    window: int | None,
    padding_mask: Tensor | None,
    device: torch.device,
    forest: Forest | None = None,
) -> Tensor | None:
    """Build a bool mask (T, S), or (B, 1, T, S) with padding or a forest; True is visible.

    ``padding_mask`` is bool (B, S), True for real tokens. ``forest`` is for T = S. None is returned
    when each query sees all keys up to its own. A single query after cached keys needs no mask for
    a window either: `Attention` drops the keys before the window.
    """
    if forest is not None:
        return forest.visible(window)
    if padding_mask is None:
        whole = query_len == key_len and (window is None or window >= key_len)
        if whole or query_len == 1:
            return None
    queries = torch.arange(key_len - query_len, key_len, device=device)[:, None]
    keys = torch.arange(key_len, device=device)[None]
    mask = keys <= queries
    if window is not None:
        mask = mask & (keys > queries - window)
    if padding_mask is None:
        return mask
    # A padded query sees itself, so that its softmax has at least one term. A row of -inf would
    # give NaN, which spreads to the whole batch.
    return (mask & padding_mask[:, None, None, :]) | (keys == queries)


def build_block_mask(input_ids: Tensor, window: int | None, forest: Forest | None) -> BlockMask:
    """Build for FlexAttention the mask of `build_mask` without padding and cache.

    The lists of blocks follow from the largest and smallest ``until`` and ``position`` of each
    block, and with a window from T x N comparisons. There is no pass over the T x T pairs as in
    ``create_block_mask``, no compiler, and nothing waits for the device.
    """
    T = input_ids.shape[1]
    until_BT, position_BT = (t.int().contiguous() for t in forest or Forest.of_rows(input_ids))

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < until_BT[batch, key])
        if window is None:
            return seen
        return seen & (position_BT[batch, query] - position_BT[batch, key] < window)

    keys_N = torch.arange(-(-T // BLOCK), device=input_ids.device)
    queries_N1 = keys_N[:, None]
    until_BNb = _in_blocks(until_BT)
    # A later query block sees a key if its first query lies in the key's subtree. It sees all keys
    # of a block if its last query lies in the subtrees of all of them.
    touched_BNN = queries_N1 * BLOCK < until_BNb.amax(-1)[:, None]
    last_N1 = (queries_N1 + 1) * BLOCK
    full_BNN = (last_N1 <= until_BNb.amin(-1)[:, None]) & (last_N1 <= T)
    if window is not None:
        position_BNb = _in_blocks(position_BT)
        touched_BNN = _within(window, until_BT, position_BT, position_BNb)
        distance_BNN = position_BNb.amax(-1)[:, :, None] - position_BNb.amin(-1)[:, None]
        full_BNN = full_BNN & (distance_BNN < window)
    touched_BNN = (keys_N == queries_N1) | ((keys_N < queries_N1) & touched_BNN)
    full_BNN = (keys_N < queries_N1) & full_BNN
    return BlockMask.from_kv_blocks(
        *_block_lists(touched_BNN & ~full_BNN),
        *_block_lists(full_BNN),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(T, T),
    )


def _within(window: int, until_BT: Tensor, position_BT: Tensor, position_BNb: Tensor) -> Tensor:
    """Whether any query of a block sees any key of an earlier block in a window: bool (B, N, N)."""
    T, N = until_BT.shape[1], position_BNb.shape[1]
    begins_N1 = torch.arange(N, device=until_BT.device)[:, None] * BLOCK
    # The queries of a block that lie in a key's subtree are the block's first ones. The nearest of
    # them has the smallest position.
    count_BNT = (until_BT[:, None] - begins_N1).clamp(0, BLOCK)
    smallest_BNT = position_BNb.cummin(-1).values.gather(2, (count_BNT - 1).clamp(min=0).long())
    sees_BNT = (count_BNT > 0) & (smallest_BNT - position_BT[:, None] < window)
    more = sees_BNT.new_zeros(*sees_BNT.shape[:2], -T % BLOCK)
    return torch.cat((sees_BNT, more), 2).unflatten(2, (N, BLOCK)).any(-1)


def _in_blocks(values_BT: Tensor) -> Tensor:
    """(B, T) -> (B, N, BLOCK). The last value fills the last block, which keeps its extremes."""
    B, T = values_BT.shape
    more = values_BT[:, -1:].expand(B, -T % BLOCK)
    return torch.cat((values_BT, more), 1).view(B, -1, BLOCK)


def _block_lists(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each query block the number of chosen key blocks and their indices.

    The shapes are int32 (B, 1, N) and (B, 1, N, N). In each row the chosen blocks come first, in
    order, and the other blocks follow.
    """
    blocks = blocks_BNN[:, None].int()
    return blocks.sum(-1, dtype=torch.int32), blocks.argsort(
        dim=-1, descending=True, stable=True
    ).int()
