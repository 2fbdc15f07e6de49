"""Tensors sharded among processes (DTensors), and the operations that need them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._pytree import MappingKey, tree_map_with_path

from lit_llm.models.parallel.draws import Initializers
from lit_llm.models.parallel.sharded_checkpoint import MARK, Divided, Shard, Stored


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, without a copy; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor, on every process; any other tensor itself.

    All processes of its mesh must call this function.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_divided(model: nn.Module) -> bool:
    """Whether the weights of ``model`` are divided among processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@torch.no_grad()
def copy_part(into: Tensor, full: Tensor | Stored) -> None:
    """Fill ``into`` with its part of ``full``, without communication.

    Every process has ``full`` or can read it.
    """
    if not isinstance(into, DTensor):
        into.copy_(full[...])
        return
    if isinstance(full, DTensor):
        # A weight of the module itself that no file holds: LoRA's frozen weights.
        into.copy_(full)
        return
    shape, offset = compute_local_shape_and_global_offset(
        into.shape, into.device_mesh, into.placements
    )
    part = full[
        tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    ]
    into.to_local().copy_(part)


def like_part(parameter: Tensor, full: Tensor | Stored) -> Tensor:
    """Divide ``full``, a tensor of an optimizer's state, as ``parameter`` is divided.

    A dimension in which their sizes differ stays whole.
    """
    if not isinstance(parameter, DTensor) or full.ndim != parameter.ndim:
        return full[...].to(parameter.device)
    state = empty_like(parameter, full.shape, full.dtype)
    copy_part(state, full)
    return state


def empty_like(parameter: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return zeros of ``shape``, divided as ``parameter`` is in every dimension of equal size."""
    dtype = dtype or parameter.dtype
    if not isinstance(parameter, DTensor):
        return parameter.new_zeros(tuple(shape), dtype=dtype)

    def placement(there: Placement) -> Placement:
        dim = getattr(there, "dim", None)
        return there if dim is None or shape[dim] == parameter.shape[dim] else Replicate()

    placements = [placement(there) for there in parameter.placements]
    mesh = parameter.device_mesh
    size, _ = compute_local_shape_and_global_offset(tuple(shape), mesh, placements)
    part = parameter.to_local().new_zeros(size, dtype=dtype)
    stride = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def whole_state_dict(state: Iterable[tuple[str, Any]], keep: bool) -> dict[str, Any]:
    """Return the items of a state dict with whole tensors on the CPU; empty unless ``keep``.

    The tensors are gathered one after the other. All processes must call this function.
    """
    kept = {}
    for name, value in state:
        value = whole(value.detach()) if isinstance(value, Tensor) else value
        if keep:
            kept[name] = value.cpu() if isinstance(value, Tensor) else value
    return kept


def divide(checkpoint: dict[str, Any], keep_rest: bool) -> Divided:
    """Return this process's share of ``checkpoint``; no tensor is copied or sent.

    If several processes hold the same part, one of them has it in its share. A tensor that occurs
    twice is stored once, under its first name.
    """
    shards: dict[str, Shard] = {}
    names: dict[tuple, str] = {}

    def collect(path: tuple, leaf: Any) -> Any:
        """Add a divided tensor to ``shards`` and return its marker; return other leaves."""
        if not isinstance(leaf, DTensor):
            return leaf if keep_rest else None
        name = ".".join(
            str(entry.key if isinstance(entry, MappingKey) else entry.idx) for entry in path
        )
        part, mesh = local(leaf.detach()), leaf.device_mesh
        if part.numel():  # empty if the tensor has fewer rows than there are processes
            name = names.setdefault(
                (part.data_ptr(), part.shape, part.stride(), part.dtype, leaf.shape), name
            )
            _, offset = compute_local_shape_and_global_offset(leaf.shape, mesh, leaf.placements)
            where = mesh.get_coordinate() or ()
            # Processes outside this mesh may hold the same part: tensor parallelism does not cut
            # every tensor.
            mine = bool((mesh.mesh == 0).any()) and all(
                at == 0
                for at, there in zip(where, leaf.placements, strict=True)
                if isinstance(there, Replicate)
            )
            if mine:
                shards[name] = Shard(part, tuple(offset), tuple(leaf.shape))
        return MARK + name

    rest = tree_map_with_path(collect, checkpoint)
    return Divided(shards, rest if keep_rest else None)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together: a plain scalar on their device.

    The scalar is float32 or wider and equal on every process.
    """
    meshes: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        meshes.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(
            tensor
        )
    norms = [whole(_norm(group)) for group in meshes.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _norm(tensors: list[Tensor]) -> Tensor:
    if all(tensor.dtype == torch.float32 for tensor in tensors):
        return torch.nn.utils.get_total_norm(tensors)
    # torch's function would round each tensor's norm, and the total norm, to bfloat16.
    wide = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in tensors
    ]
    return torch.linalg.vector_norm(torch.stack(wide))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients in place so that their common norm is at most ``limit``.

    Returns the norm before scaling. As ``torch.nn.utils.clip_grad_norm_``, but parameters may be
    divided over meshes of different shapes.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norm = total_norm(grads)
    torch._foreach_mul_([local(grad) for grad in grads], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


class WholeDraws(Initializers):
    """Random initialisations of a DTensor draw the whole tensor and keep this process's part.

    A model divided among any number of processes, with equal seeds, then starts from the same
    weights as in a single process.
    """

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Fill ``tensor``, of which each process may hold a part."""
        if not isinstance(tensor, DTensor):
            fill(tensor)
            return
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        fill(full)
        copy_part(tensor, full)
