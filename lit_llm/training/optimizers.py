"""MuonAdamW: Muon for the matrices and AdamW for all other parameters, in one optimizer.

As one optimizer it works with Lightning's automatic optimization. Muon
(https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, which a few matrix products compute. Here the products use the Polar Express
coefficients (arXiv:2505.16932), matrices of the same shape are stacked into one batched product,
and the step is rescaled per row as in NorMuon (arXiv:2510.05491).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.optim.adamw import adamw

from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.mlp import Experts
from lit_llm.models.norm import HeadNorm
from lit_llm.models.parallel.sharded import empty_like, local
from lit_llm.models.token_rows import row_layers
from lit_llm.models.transformer import Transformer
from lit_llm.training.lookup_step import step_used_rows

# Polar Express, 5 iterations, safety factor 2e-2, cushion 2 (arXiv:2505.16932, algorithm 1).
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


_STACKED = 2**28
"""Most elements to orthogonalize at once; intermediate results take several times their memory."""


def orthogonalize(g: Tensor, dtype: torch.dtype) -> Tensor:
    """The approximate semi-orthogonal factor of each matrix in ``g`` (..., rows, cols).

    The singular values of the result are about 1. The products run in ``dtype``. bfloat16 is exact
    enough, because the result is only the direction of a step.
    """
    x = g.to(dtype)
    tall = x.size(-2) > x.size(-1)
    # The Gram matrix has the size of the rows, so the rows should be the smaller side.
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)).reshape(-1, *x.shape[-2:])
    for a, b, c in _POLAR_EXPRESS:
        gram = torch.bmm(x, x.mT)
        # x <- a x + (b gram + c gram gram) x, with the sums inside the products.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(g.shape).to(g.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with ``muon=True``, AdamW for all other groups.

    Groups with ``lookup=True`` are tables of rows; a step changes those that have a gradient, see
    `step_used_rows`. Their settings are ``lr``, the second of ``betas`` and ``eps``.

    Settings of Muon groups are ``lr`` (the step's RMS is about ``lr * sqrt(max(1, rows / cols)) /
    sqrt(cols)``, see the scale in ``_muon_step``), ``momentum``, ``beta2`` and ``weight_decay``.
    Settings of AdamW groups are ``lr``, ``betas``, ``eps`` and ``weight_decay`` (decoupled).

    Every parameter of a Muon group is a matrix or a stack of matrices (..., rows, cols), and must
    have a gradient in every step. Parameters may be DTensors. Each process then orthogonalizes its
    share of the whole matrices of a shape, and sends the parts back.

    Attributes:
        found_inf: None, or a float scalar on the device. If it is 1, the step changes nothing,
            whatever the gradients are. Name and meaning are those of torch's fused optimizers.
            `SpikeGuard` sets it.
        find_rows: how lookup tables are updated, see `step_used_rows`. None: True on a CPU.
    """

    found_inf: Tensor | None = None
    find_rows: bool | None = None

    def __init__(self, groups: Iterable[dict[str, Any]]):
        defaults = {"muon": False, "lookup": False, "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-10,
                    "weight_decay": 0.0, "momentum": 0.95, "beta2": 0.95,
                    "fused": True}  # fmt: skip
        # With "fused", torch moves the step counts to the parameters' device when it loads a
        # checkpoint.
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["muon"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError(
                    "Muon takes matrices; give vectors and embeddings to an AdamW group"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the result of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["muon"]:
                for stack in _stacks(params):
                    self._muon_step(stack, group)
            elif group["lookup"]:
                for p in params:
                    self._lookup_step(p, group)
            else:
                self._adamw_step(params, group)
        return loss

    def _muon_step(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        *stacked, rows, cols = params[0].shape
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
                # One second moment per row, because the rows of Muon's step differ in size.
                self.state[p]["row_second_moment"] = empty_like(p, (*stacked, rows, 1))
        # Update the momenta. A step that `found_inf` skips must leave them as they are, so its
        # weight is multiplied by ``keep`` (0 or 1). Gradients that are not finite are set to 0,
        # because nan times 0 would still be nan.
        momenta = [local(self.state[p]["momentum"]) for p in params]
        grads = [local(grad) for grad in _gradients(params)]
        keep: Tensor | float = 1.0
        if self.found_inf is None:
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        else:
            keep = 1 - self.found_inf
            grads = [torch.where(keep > 0, grad, 0.0) for grad in grads]
            for momentum, grad in zip(momenta, grads, strict=True):
                momentum.lerp_(grad, (1 - group["momentum"]) * keep)
        nesterov = torch.stack(grads).lerp_(torch.stack(momenta), group["momentum"])
        del grads  # with `found_inf` these are copies, whose memory is freed here
        dtype = torch.bfloat16 if has_fast_bf16(params[0].device) else torch.float32
        second = torch.stack([local(self.state[p]["row_second_moment"]) for p in params])
        nesterov, give_back = _whole_matrices(nesterov, params[0])
        second, give_back_second = _whole_matrices(
            second, self.state[params[0]]["row_second_moment"]
        )
        update = orthogonalize(nesterov, dtype)
        # NorMuon: divide each row by its running RMS, then restore the norm of the whole step.
        second.lerp_(update.square().mean(-1, keepdim=True), (1 - group["beta2"]) * keep)
        norm = update.norm(dim=(-2, -1), keepdim=True)
        update = update * second.clamp_min(1e-10).rsqrt()
        update *= norm / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10)
        if self.found_inf is not None:
            update *= keep
        lr = group["lr"] * max(1.0, rows / cols) ** 0.5
        update, second = give_back(update), give_back_second(second)
        for i, p in enumerate(params):
            local(self.state[p]["row_second_moment"]).copy_(second[i])
            if group["weight_decay"]:
                local(p).mul_(1 - group["lr"] * group["weight_decay"] * keep)
            local(p).add_(update[i], alpha=-lr)

    def _lookup_step(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        if not self.state[p]:
            self.state[p]["row_steps"] = empty_like(p, (*p.shape[:-1], 1), torch.float32)
            self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        step_used_rows(
            local(p),
            local(_gradients([p])[0]),
            local(self.state[p]["row_steps"]),
            local(self.state[p]["exp_avg_sq"]),
            lr=group["lr"],
            beta2=group["betas"][1],
            eps=group["eps"],
            found_inf=self.found_inf,
            find_rows=p.device.type == "cpu" if self.find_rows is None else self.find_rows,
        )

    def _adamw_step(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        adamw(
            [local(p) for p in params],
            [local(grad) for grad in _gradients(params)],
            [local(self.state[p]["exp_avg"]) for p in params],
            [local(self.state[p]["exp_avg_sq"]) for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self.found_inf,
        )


def _stacks(params: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Groups of matrices that are updated together.

    All matrices of a group have the same layout. A group has at most `_STACKED` elements per
    process, or one matrix.
    """
    for layout in sorted({_layout(p) for p in params}):
        alike = [p for p in params if _layout(p) == layout]
        # Processes share the matrices of a group, see `_whole_matrices`.
        processes = alike[0].device_mesh.size(0) if isinstance(alike[0], DTensor) else 1
        size = max(1, _STACKED // alike[0].numel()) * processes
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _layout(p: Tensor) -> tuple[tuple[int, ...], str]:
    """Shape and sharding of a matrix. Only matrices with the same layout can be stacked."""
    return tuple(p.shape), str(p.placements) if isinstance(p, DTensor) else ""


def _whole_matrices(parts: Tensor, one: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Exchange the parts of all matrices of a stack for some whole matrices.

    The processes along the first mesh dimension distribute the matrices among themselves, with one
    all-to-all in each direction. The processes along the other dimensions all do the same work.

    Args:
        parts: (N, ...), this process's parts of N tensors.
        one: one of the tensors; all of them are sharded in the same way.

    Returns:
        The whole matrices of this process, and a function that exchanges results back into parts.
    """
    if not isinstance(one, DTensor):
        return parts, lambda update: update
    mesh, shape = one.device_mesh, torch.Size((len(parts), *one.shape))
    stride = torch.empty(shape, device="meta").stride()
    # Matrices that are also sharded along a second mesh dimension (tensor parallelism) are first
    # gathered along that dimension.
    divided = [_placement_in_stack(placement) for placement in one.placements]
    shared = [Shard(0), *[Replicate()] * (mesh.ndim - 1)]
    stack = DTensor.from_local(parts, mesh, divided, run_check=False, shape=shape, stride=stride)

    def give_back(update: Tensor) -> Tensor:
        return (
            DTensor.from_local(update, mesh, shared, run_check=False, shape=shape, stride=stride)
            .redistribute(placements=divided)
            .to_local()
        )

    return stack.redistribute(placements=shared).to_local(), give_back


def _placement_in_stack(placement: Any) -> Any:
    """The placement of a stack of tensors, which has one more dimension in front."""
    # A strided shard is one of a matrix that tensor parallelism has already cut.
    if isinstance(placement, _StridedShard):
        return _StridedShard(placement.dim + 1, split_factor=placement.split_factor)
    return Shard(placement.dim + 1) if isinstance(placement, Shard) else placement


def _gradients(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


OptimizerName = Literal["muon_adamw", "adamw", "adamw_8bit", "paged_adamw_8bit"]


def default_learning_rate(optimizer: OptimizerName, width: int) -> float:
    """The learning rate of the matrices if none is given, from the model's width.

    The size of Muon's step does not depend on the gradient, so its rate transfers between models:
    0.02 is nanochat's rate at half a million tokens per step, and the best rate of our sweep at two
    thousand (docs/decisions.md). Adam's rate falls with the width (arXiv:2203.03466), from GPT-3's
    6e-4 at width 768.
    """
    return 0.02 if optimizer == "muon_adamw" else 6e-4 * 768 / width


def parameter_groups(
    model: nn.Module, optimizer: OptimizerName, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of ``model``; ``lr`` is the learning rate of the first group.

    The first group has the matrices between embedding and head, and stacks of matrices (experts).
    Muon or AdamW with weight decay updates it. Embeddings (value embeddings too), head and vectors
    (norms, biases, the numbers of `lit_llm.models.mixing`) are three more groups without decay.
    AdamW updates them. Beside Muon, embeddings that are not the head too are the group "lookups"
    (`step_used_rows`). LoRA's B matrices are a group of their own if their learning rate is another
    one (`LoRAConfig.lr_ratio`).
    """
    muon = optimizer == "muon_adamw"
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    embedding = {id(w) for w in tables} | {id(m.added_rows) for m in row_layers(model)}
    # The head has no fixed name. It is the last linear layer, if it has the shape of an embedding:
    # one row per token.
    head = {id(w) for w in linear[-1:] if w.shape in {t.shape for t in tables}} - embedding
    lora = model.lora if isinstance(model, Transformer) else None
    ratio = 1.0 if lora is None else lora.lr_ratio
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # The group of a parameter is the first one that has its id; vectors are what remains.
    ids = {
        # A tied embedding is the head too, so all its rows have a gradient in every step.
        "lookups": {id(w) for w in tables} - {id(w) for w in linear} if muon else set(),
        "embedding": embedding,
        "head": head,
        "lora_b": {id(p) for n, p in parameters.items() if ratio != 1 and n.endswith("lora_b")},
        # The gains of a HeadNorm have two dimensions, but are not a matrix.
        "gains": {id(m.weight) for m in model.modules() if isinstance(m, HeadNorm)},
        "matrices": {id(p) for m in model.modules() if isinstance(m, Experts)
                     for p in m.parameters()} | {id(p) for p in parameters.values() if p.ndim == 2},
    }  # fmt: skip
    named: dict[str, list[nn.Parameter]] = {
        kind: [] for kind in ("matrices", "lora_b", "lookups", "embedding", "head", "vectors")
    }
    for p in parameters.values():
        kind = next((kind for kind, of_kind in ids.items() if id(p) in of_kind), "vectors")
        named["vectors" if kind == "gains" else kind].append(p)
    rates = {"matrices": lr, "lora_b": lr * ratio}
    # The ratios of nanochat. The rates of embedding and head fall with the root of the width.
    if muon:
        scale = (768 / model_width(model)) ** 0.5
        rates |= {
            "lookups": lr * 15 * scale,
            "embedding": lr * 15 * scale,
            "head": lr * 0.2 * scale,
            "vectors": lr * 0.5,
        }
    groups = []
    for kind, params in named.items():
        if params:
            group = {
                "params": params,
                "lr": rates.get(kind, lr),
                "name": kind,
                "weight_decay": weight_decay if kind in ("matrices", "lora_b") else 0.0,
            }
            groups.append(group)
            if muon and kind in ("matrices", "lora_b"):
                group["muon"] = True
            if kind == "lookups":
                group["lookup"] = True
    return groups


def model_width(model: nn.Module) -> int:
    """Width of the residual stream, taken from the first embedding.

    Without an embedding it is 768, the reference width of the learning rates.
    """
    return next((m.embedding_dim for m in model.modules() if isinstance(m, nn.Embedding)), 768)
