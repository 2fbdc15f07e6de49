"""The tensors behind the slots: keys and values of every layer, one block of memory a class.

Shapes: N slots, K key/value heads, S positions of a slot, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_llm.models.engine.slots import Move


class SlotMemory:
    """Keys and values (N, K, S, D) of each layer, for each class of slots.

    Memory is allocated as it is needed, twice as much each time, and never exceeds ``budget``
    tokens, but for one layer of one class while that class grows.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        budget: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.num_layers, self.num_kv_heads, self.budget = num_layers, num_kv_heads, budget
        self.device, self.dtype, self._shape = device, dtype, (num_kv_heads, head_dim)
        self._keys: dict[int, list[Tensor]] = {}
        self._values: dict[int, list[Tensor]] = {}

    def allocated(self, capacity: int) -> int:
        """Number of slots of a class that have memory."""
        return len(self._keys[capacity][0]) if capacity in self._keys else 0

    @property
    def tokens(self) -> int:
        """Positions that have memory."""
        return sum(capacity * self.allocated(capacity) for capacity in self._keys)

    def ensure(self, capacity: int, used: Mapping[int, int]) -> None:
        """Allocate memory for all slots in use.

        Args:
            capacity: the class that has grown.
            used: number of slots in use in each class, which fit the budget together.
        """
        needed, there = used[capacity], self.allocated(capacity)
        if needed <= there:
            return
        if self.tokens + (needed - there) * capacity > self.budget:
            for other, count in used.items():
                if other != capacity:
                    self._resize(other, count)
        room = (self.budget - self.tokens) // capacity + there
        self._resize(capacity, max(needed, min(room, 2 * there)))

    def _resize(self, capacity: int, slots: int) -> None:
        there = self.allocated(capacity)
        if slots == there:
            return
        if not slots:
            self._keys.pop(capacity, None)
            self._values.pop(capacity, None)
            return
        K, D = self._shape
        kept = min(there, slots)
        for tensors in (self._keys, self._values):
            layers = tensors.setdefault(capacity, [])
            for layer in range(self.num_layers):
                new_NKSD = torch.empty(slots, K, capacity, D, device=self.device, dtype=self.dtype)
                # Zeros: a key that no query sees has the weight 0, and 0 times NaN is NaN.
                new_NKSD[kept:].zero_()
                if there:
                    new_NKSD[:kept] = layers[layer][:kept]
                    layers[layer] = new_NKSD
                else:
                    layers.append(new_NKSD)

    def layer(self, capacity: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (N, K, S, D) of all slots of a class in one layer."""
        return self._keys[capacity][layer], self._values[capacity][layer]

    def close_gap(self, move: Move) -> None:
        """Copy a slot within its class."""
        for tensors in (self._keys, self._values):
            for layer_NKSD in tensors[move.capacity]:
                layer_NKSD[move.target] = layer_NKSD[move.source]

    def grow(self, small: int, source: int, large: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a slot to one of a larger class."""
        for tensors in (self._keys, self._values):
            for old_NKSD, new_NKSD in zip(tensors[small], tensors[large], strict=True):
                new_NKSD[target, :, :length] = old_NKSD[source, :, :length]

    def read(self, capacity: int, index: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """A copy of keys and values of some positions: (layers, K, end - begin, D) each."""
        keys, values = (
            torch.stack([layer_NKSD[index, :, begin:end] for layer_NKSD in tensors[capacity]])
            for tensors in (self._keys, self._values)
        )
        return keys, values

    def write(self, capacity: int, index: int, begin: int, keys: Tensor, values: Tensor) -> None:
        """Put back what `read` returned, from position ``begin`` on."""
        end = begin + keys.shape[2]
        for tensors, new in ((self._keys, keys), (self._values, values)):
            for layer_NKSD, new_KTD in zip(tensors[capacity], new, strict=True):
                layer_NKSD[index, :, begin:end] = new_KTD
