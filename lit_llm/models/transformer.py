"""The decoder-only transformer: embedding, pre-norm blocks, head.

Shapes: B batch, T positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.attention import Attention, KVCache, build_mask
from lit_llm.models.config import TransformerConfig
from lit_llm.models.locate import locate
from lit_llm.models.norm import RMSNorm, build_norm
from lit_llm.models.rope import inverse_frequencies, rope_cache

if TYPE_CHECKING:
    from lit_llm.models.lora import LoRAConfig


IGNORE = -100
"""Label of a position that is not predicted: torch's cross-entropy default."""


class MLP(nn.Module):
    """Two projections around an activation, or three when it is gated."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        assert config.intermediate_size is not None
        self.activation = config.mlp
        width, bias = config.intermediate_size, config.mlp_bias
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        up = self.up_proj(x_BTC)
        if self.activation == "swiglu":
            up = F.silu(self.gate_proj(x_BTC)) * up
        elif self.activation == "geglu":
            up = F.gelu(self.gate_proj(x_BTC), approximate="tanh") * up
        elif self.activation == "gelu":
            up = F.gelu(up, approximate="tanh")
        else:
            up = F.relu(up).square()
        return self.down_proj(up)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = build_norm(config, config.hidden_size)
        self.attention = Attention(config, layer)
        self.mlp_norm = build_norm(config, config.hidden_size)
        self.mlp = MLP(config)

    def forward(
        self, x_BTC: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), rope, mask, cache)
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class Transformer(nn.Module):
    """A decoder-only language model: ``Transformer(config)(input_ids) -> logits (batch, seq, vocab)``.

    Weights are made where torch's default device says, so ``with torch.device("meta")`` builds the shapes alone;
    ``to_empty`` and ``init_weights`` (or ``load_state_dict(assign=True)``) fill them.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.lora: LoRAConfig | None = None  # set by `apply_lora`
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_norm = build_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = build_norm(config, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random weights: unit-scale inputs to every matrix product, and blocks that start as the identity.

        Matrices are uniform with standard deviation 1/sqrt(fan_in), each block's two output projections zero (as in
        nanochat and arXiv:2203.03466), the head nearly zero so that the first loss is ln(vocab), the embedding
        normal(0, 0.02) where head and embedding are tied or no norm follows it, and normal(0, 1) otherwise.
        """
        tied = self.config.tie_embeddings
        nn.init.normal_(self.embed.weight, std=0.02 if tied or not self.config.embedding_norm else 1.0)
        if not tied:
            nn.init.normal_(self.head.weight, std=0.001)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                bound = (3 / module.in_features) ** 0.5
                if name.endswith(("o_proj", "down_proj")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (RMSNorm, nn.LayerNorm)) and module.weight is not None:
                # Norms of a model filled by `to_empty` hold garbage until they are set here.
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)

    def assign_weights(self, weights: dict[str, Tensor]) -> None:
        """Make ``weights`` the model's own, as they are: how a model on the meta device is filled.

        A tied head need not be among them; head and embedding are one parameter afterwards.
        """
        tied = self.config.tie_embeddings
        self.load_state_dict({**weights, "head.weight": weights["embed.weight"]} if tied else weights, assign=True)
        if tied:
            self.head.weight = self.embed.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        padding_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits for every position.

        Args:
            input_ids: int64 (B, T).
            padding_mask: bool (B, S), True for real tokens, S the cached and the new positions together; a padded
                token is never attended to, and positions count real tokens only.
            cache: keys and values of the positions before; filled and advanced by T.
            last_only: logits of the last position alone (B, 1, V), which is all that decoding needs.

        Returns:
            Logits (B, T, V) in the compute dtype.
        """
        x_BTC = self.hidden_states(input_ids, padding_mask=padding_mask, cache=cache)
        return self.logits(x_BTC[:, -1:] if last_only else x_BTC)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        padding_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads: the last block's output after the final norm, (B, T, C).

        ``document_ids`` int64 (B, T) says which of a row's documents a token is of: tokens see their own document
        alone, and positions count from its start, so that packed documents are computed as single ones.
        """
        T, device = input_ids.shape[1], input_ids.device
        past = 0 if cache is None else cache.length
        if document_ids is not None:
            positions = positions_in_documents(document_ids)[:, None]
        elif padding_mask is None:
            positions = torch.arange(past, past + T, device=device)
        else:
            positions = (padding_mask.long().cumsum(-1) - 1).clamp(min=0)[:, None, past : past + T]
        x_BTC = self.embed(input_ids)
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            # The residual stream is kept in the compute dtype: half the traffic, and what the products read anyway.
            x_BTC = x_BTC.to(torch.get_autocast_dtype(device.type))
        assert self.config.head_dim is not None
        # Frequencies are computed, not stored: a buffer left on meta would reinitialise a loaded model.
        cos, sin = rope_cache(positions, inverse_frequencies(self.config.head_dim, self.config.rope_theta, device))
        rope = cos.to(x_BTC.dtype), sin.to(x_BTC.dtype)
        masks = {  # one mask a kind of layer, not one a layer
            window: build_mask(T, past + T, window, padding_mask, device, document_ids)
            for window in {self.config.window(i) for i in range(self.config.num_layers)}
        }
        x_BTC = self.embed_norm(x_BTC)
        for i, block in enumerate(self.layers):
            x_BTC = block(x_BTC, rope, masks[self.config.window(i)], cache)
        if cache is not None:
            cache.length += T
        return self.norm(x_BTC)

    def logits(self, x_BTC: Tensor) -> Tensor:
        """The head: (..., C) -> (..., V), soft-capped in float32 if the config says so."""
        logits = self.head(x_BTC)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)

    def token_losses(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Cross-entropy of each position in nats: float32 (B, T); 0 where ``labels`` (B, T) is -100.

        With ``document_ids`` the head computes labelled positions alone: of a conversation that is about half, and
        the logits over a large vocabulary are what such a step spends most memory on.
        """
        x_BTC = self.hidden_states(input_ids, document_ids=document_ids)
        if document_ids is None:
            return self.head_losses(x_BTC, labels)
        labelled = labels != IGNORE
        # The class's own method: their number differs from batch to batch, and a compiler would begin anew each time.
        losses = Transformer.head_losses(self, x_BTC[labelled], labels[labelled])
        return torch.zeros(labels.shape, device=losses.device).masked_scatter(labelled, losses)

    def head_losses(self, x_BTC: Tensor, labels_BT: Tensor) -> Tensor:
        """Head and cross-entropy together, so that a compiler makes one pass over the logits of both.

        (..., C) and labels (...) -> losses (...).
        """
        logits_BTV = self.logits(x_BTC).float()
        return F.cross_entropy(logits_BTV.view(-1, logits_BTV.shape[-1]), labels_BT.flatten(), reduction="none").view(
            labels_BT.shape
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = None) -> Transformer:
        """Load a Hugging Face directory (config.json + safetensors) or a GGUF file.

        Args:
            path: see `locate`.
            dtype: of the weights. None: the file's (float32 for GGUF).

        Raises:
            UserError: a missing or broken file, an architecture or a tensor name that is not known.
        """
        found = locate(path)
        if found.suffix == ".gguf":
            from lit_llm.models.gguf import load_gguf

            return load_gguf(found, dtype)[0]
        from lit_llm.models.huggingface import load_pretrained

        return load_pretrained(found, dtype)

    def save_pretrained(
        self, path: str | Path, dtype: torch.dtype | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a Hugging Face directory that transformers and vLLM load.

        Args:
            path: made if it is not there.
            dtype: of the file's weights. None keeps theirs.
            state_dict: weights to write in place of the model's own, under the same names.
        """
        from lit_llm.models.huggingface import save_pretrained

        save_pretrained(self, Path(path), dtype, state_dict)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Distance of each token from its document's first in the row: int64 (B, T), documents being runs of one id."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(-1).values
