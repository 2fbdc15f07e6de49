"""The MLP of a block: dense, or a mixture of experts where each token uses a few of them.

Shapes: N tokens, C hidden width, I width of the MLP, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.eager import GatedSiLU, GatedSiLULinear, OneDNNLinear, call
from lit_llm.models.kernels.fused import project


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


# These are named functions because a model that holds a lambda cannot be pickled.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": _gelu_tanh,
    "gelu": _gelu_tanh,
    "gelu_erf": F.gelu,
    "relu2": _relu_squared,
}


class MLP(nn.Module):
    """Two projections around an activation; three if the MLP is gated."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        assert config.intermediate_size is not None
        self.gated, self.activation = config.gated_mlp, _ACTIVATIONS[config.mlp]
        width, bias = config.intermediate_size, config.mlp_bias
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if not self.gated:
            return self.down_proj(self.activation(self.up_proj(x_BTC)))
        gate, up = project(x_BTC, self.gate_proj, self.up_proj)
        if self.activation is F.silu and not torch.compiler.is_compiling():
            if isinstance(self.down_proj, OneDNNLinear) and gate.device.type == "cpu":
                return GatedSiLULinear.apply(gate, up, self.down_proj.weight, self.down_proj.bias)
            return self.down_proj(call(GatedSiLU, gate, up))
        return self.down_proj(self.activation(gate) * up)


class Experts(nn.Module):
    """Gated MLPs side by side: weights (E, I, C), (E, I, C) and (E, C, I)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        assert config.expert_size is not None
        self.activation = _ACTIVATIONS[config.mlp]
        shape = config.num_experts, config.expert_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(shape))
        self.up_proj = nn.Parameter(torch.empty(shape))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))

    @torch.no_grad()
    def reset_parameters(self, zero_output: bool) -> None:
        """Initialise as a dense MLP: uniform with standard deviation 1/sqrt(fan_in).

        With ``zero_output`` the output projections are zero.
        """
        for weight in (self.gate_proj, self.up_proj, self.down_proj):
            bound = (3 / weight.shape[2]) ** 0.5
            weight.uniform_(-bound, bound)
        if zero_output:
            self.down_proj.zero_()

    def forward(self, x_NC: Tensor, counts: Tensor) -> Tensor:
        """(N, C) -> (N, C), for rows that are sorted by expert.

        ``counts`` is int64 (E,): the first counts[0] rows belong to the first expert, and so on.
        """
        if x_NC.device.type == "cuda" and x_NC.dtype == torch.bfloat16:
            return self.grouped(x_NC, counts)
        outputs = []
        N, E = len(x_NC), len(counts)
        # On the meta device (counting FLOPs or memory) there are no counts: every expert gets an
        # equal share.
        sizes = [N // E + (i < N % E) for i in range(E)] if counts.is_meta else counts.tolist()
        for expert, rows in enumerate(x_NC.split(sizes)):
            hidden = self.activation(F.linear(rows, self.gate_proj[expert])) * F.linear(
                rows, self.up_proj[expert]
            )
            outputs.append(F.linear(hidden, self.down_proj[expert]))
        return torch.cat(outputs)

    def grouped(self, x_NC: Tensor, counts: Tensor) -> Tensor:
        """Compute `forward` with one grouped kernel per product, in bfloat16.

        The kernel reads the row ranges from the device, so the host does not wait for the counts.
        """
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up, down = (
            w.to(x_NC.dtype).mT for w in (self.gate_proj, self.up_proj, self.down_proj)
        )
        hidden = self.activation(F.grouped_mm(x_NC, gate, offs=ends)) * F.grouped_mm(
            x_NC, up, offs=ends
        )
        return F.grouped_mm(hidden, down, offs=ends)


class MixtureOfExperts(nn.Module):
    """Send each token to its k most likely experts and add up their weighted outputs.

    Tokens are sorted by expert, so each expert multiplies its own tokens once (arXiv:2211.15841)
    and no token is dropped.

    Attributes:
        router_loss: the router loss of the last forward pass in training: the load-balancing loss
            (arXiv:2101.03961, equations 4 to 6) and the router's z-loss (arXiv:2202.08906, equation
            5), each multiplied by its weight in the config. None if there is none. Read it with
            `Transformer.take_router_loss`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.top_k, self.normalize = config.experts_per_token, config.normalize_expert_weights
        self.aux_loss, self.z_loss = config.router_aux_loss, config.router_z_loss
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.router_loss: Tensor | None = None

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x_NC = x_BTC.flatten(0, 1)
        logits_NE = self.router(x_NC).float()
        probabilities_NE = logits_NE.softmax(-1)
        weights_Nk, chosen_Nk = probabilities_NE.topk(self.top_k, dim=-1)
        if self.normalize:
            weights_Nk = weights_Nk / weights_Nk.sum(-1, keepdim=True)
        # Dispatch: sort the (token, choice) rows by expert, run each expert on its own rows, then
        # add the weighted results back to their tokens. The counts are a sum of ones, because
        # bincount would make the host wait for the length of its result.
        ones = torch.ones_like(chosen_Nk.flatten())
        counts_E = ones.new_zeros(logits_NE.shape[-1]).index_add(0, chosen_Nk.flatten(), ones)
        order = chosen_Nk.flatten().argsort(stable=True)
        token = order // self.top_k
        y_rows = self.experts(x_NC[token], counts_E) * weights_Nk.flatten()[order, None].to(
            x_NC.dtype
        )
        y_NC = torch.zeros_like(x_NC).index_add(0, token, y_rows.to(x_NC.dtype))
        self.router_loss = (
            self._router_loss(logits_NE, probabilities_NE, counts_E) if self.training else None
        )
        return y_NC.view_as(x_BTC)

    def _router_loss(
        self, logits_NE: Tensor, probabilities_NE: Tensor, counts_E: Tensor
    ) -> Tensor | None:
        if not (self.aux_loss or self.z_loss):
            return None
        tokens, experts = logits_NE.shape
        balance = experts * (counts_E.float() / tokens * probabilities_NE.mean(0)).sum()
        z = logits_NE.logsumexp(-1).square().mean()
        return self.aux_loss * balance + self.z_loss * z
