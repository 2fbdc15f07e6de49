"""The decoder-only transformer: embedding, blocks and head.

The config describes all differences between model families.

Shapes: B batch, T positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_llm.models.attention import Attention, KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.head import LMHead
from lit_llm.models.hub.formats import format_of, write_model
from lit_llm.models.hub.locate import locate
from lit_llm.models.kernels.backends import BLOCKS
from lit_llm.models.lookups import BigramEmbedding, ValueEmbeddings
from lit_llm.models.masks import Mask, build_masks
from lit_llm.models.mixing import (
    Backout,
    EmbeddingMix,
    HeadGate,
    Smear,
    embeddings_before,
    ids_before,
)
from lit_llm.models.mlp import MLP, Experts, MixtureOfExperts
from lit_llm.models.norm import HeadNorm, RMSNorm, build_norm
from lit_llm.models.parallel.draws import NoDraws
from lit_llm.models.rope import for_each_channel, rope_cache

if TYPE_CHECKING:
    from lit_llm.models.lora_config import LoRAConfig


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before or after them."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.residual, self.scale = config.residual, config.residual_scale
        shared = config.residual == "parallel_one_norm"

        def norm(there: bool) -> nn.Module | None:
            return build_norm(config, config.hidden_size) if there else None

        self.mix = EmbeddingMix(layer, config.num_layers) if config.embedding_mix else None
        self.attention_norm = norm(config.pre_norm)
        self.attention = Attention(config, layer)
        self.attention_post_norm = norm(config.post_norm)
        self.mlp_norm = norm(config.pre_norm and not shared)
        self.mlp = MixtureOfExperts(config) if config.has_experts(layer) else MLP(config)
        self.mlp_post_norm = norm(config.post_norm)

    def forward(
        self,
        x_BTC: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Mask,
        cache: KVCache | None = None,
        first_BTC: Tensor | None = None,
        value_BTE: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Args:
            first_BTC: the input of the first block, for `EmbeddingMix`.
            value_BTE: rows of the layer's `ValueEmbeddings`, see `Attention.forward`.
        """
        if self.mix is not None:
            assert first_BTC is not None
            x_BTC = self.mix(x_BTC, first_BTC)
        normed_BTC = _apply(self.attention_norm, x_BTC)
        attended_BTC = self.attention(normed_BTC, rope, mask, cache, value_BTE)
        attended_BTC = self._scaled(_apply(self.attention_post_norm, attended_BTC))
        if self.residual == "sequential":
            x_BTC = x_BTC + attended_BTC
            return x_BTC + self._scaled(
                _apply(self.mlp_post_norm, self.mlp(_apply(self.mlp_norm, x_BTC)))
            )
        if self.residual == "parallel":
            normed_BTC = _apply(self.mlp_norm, x_BTC)
        return x_BTC + attended_BTC + self._scaled(self.mlp(normed_BTC))

    def _scaled(self, x_BTC: Tensor) -> Tensor:
        return x_BTC if self.scale is None else x_BTC * self.scale


# What has initial values of its own, see `Transformer.init_weights`.
_PARTS = (Smear, EmbeddingMix, Backout, HeadGate, ValueEmbeddings, BigramEmbedding)


def _apply(norm: nn.Module | None, x_BTC: Tensor) -> Tensor:
    return x_BTC if norm is None else norm(x_BTC)


class Transformer(nn.Module):
    """A decoder-only language model.

    It is called as ``Transformer(config)(input_ids) -> logits (batch, seq, vocab)``. The weights
    are created on torch's default device. ``with torch.device("meta")`` therefore builds shapes
    without weights; ``to_empty`` and ``init_weights`` (or ``load_state_dict(assign=True)``) fill
    them.

    Attributes:
        generation_config: fields of the generation_config.json that the model was loaded with;
            `save_pretrained` writes them back.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.generation_config: dict[str, Any] = {}
        self.lora: LoRAConfig | None = None  # set by `apply_lora`
        # Dtype of the base's embedding, set with ``lora``: weights trained whole are float32.
        self.base_dtype: torch.dtype | None = None
        self.replaced: tuple[str, ...] = ()  # base weights that `load_adapter` has replaced
        self.backends = BLOCKS  # set by `parallelize`
        with NoDraws():  # init_weights below draws the random numbers, once
            self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
            if config.learned_positions:
                self.position_embed = nn.Embedding(config.max_seq_len, config.hidden_size)
            self.embed_norm = (
                build_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
            )
            self.smear = Smear(config.smear_channels) if config.smear_channels else None
            self.bigram = BigramEmbedding(config) if config.bigram_rows else None
            self.value_embeds = ValueEmbeddings(config)
            self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
            self.backout = Backout() if config.backout_layer is not None else None
            self.norm = build_norm(config, config.hidden_size)
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head = LMHead(config, self.head)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise all weights.

        Inputs of every matrix product have unit scale, and blocks start as the identity. Matrices
        are uniform with standard deviation 1/sqrt(fan_in). Each block's two output projections are
        zero (as in nanochat and arXiv:2203.03466) unless a norm follows them. The head is nearly
        zero, so that the first loss is ln(vocab). The embedding is normal(0, 0.02) if head and
        embedding are tied or no norm follows the embedding, and normal(0, 1) otherwise.
        """
        config = self.config
        tied, zero_outputs = config.tie_embeddings, not config.post_norm
        nn.init.normal_(self.embed.weight, std=0.02 if tied or not config.embedding_norm else 1.0)
        if config.learned_positions:
            nn.init.normal_(self.position_embed.weight, std=0.02)
        if not tied:
            nn.init.normal_(self.head.weight, std=0.001)
        for name, module in self.named_modules():
            if isinstance(module, _PARTS):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module is not self.head:
                bound = (3 / module.in_features) ** 0.5
                if zero_outputs and name.endswith(("o_proj", "down_proj")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Experts):
                module.reset_parameters(zero_outputs)
            elif isinstance(module, (RMSNorm, HeadNorm, nn.LayerNorm)):
                # In a model filled by `to_empty`, norms hold uninitialised memory until here.
                module.reset_parameters()

    def assign_weights(self, weights: dict[str, Tensor]) -> None:
        """Take ``weights`` as the model's own tensors, without a copy.

        This fills a model on the meta device. ``weights`` need not contain a tied head. Afterwards
        a tied head and the embedding are one parameter.
        """
        tied = self.config.tie_embeddings
        self.load_state_dict(
            {**weights, "head.weight": weights["embed.weight"]} if tied else weights, assign=True
        )
        if tied:
            self.head.weight = self.embed.weight

    def untie(self) -> None:
        """Give a tied head its own matrix, a copy of the embedding."""
        if self.config.tie_embeddings:
            self.head.weight = nn.Parameter(
                self.embed.weight.detach().clone(), self.embed.weight.requires_grad
            )
            self.config = dataclasses.replace(self.config, tie_embeddings=False)

    def forward(
        self,
        input_ids: Tensor,
        *,
        padding_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the logits of every position.

        Args:
            input_ids: int64 (B, T).
            padding_mask: bool (B, S), True for real tokens; S counts the cached and the new
                positions. No query attends to a padded token, and positions count real tokens only.
            cache: keys and values of the previous positions; T positions are added to it.
            last_only: compute only the logits of the last position, (B, 1, V), which is all that
                decoding needs.

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
        forest: Forest | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the input of the head: the last block's output after the final norm, (B, T, C).

        ``document_ids`` int64 (B, T) gives each token the document that it belongs to. A token then
        sees only its own document, and positions count from the document's start. Packed documents
        thus give the same results as single documents. ``forest`` says the same for token trees; it
        is used instead of ``document_ids`` if both are given.
        """
        T, device = input_ids.shape[1], input_ids.device
        past = 0 if cache is None else cache.length
        if forest is None and document_ids is not None:
            forest = Forest.of_documents(document_ids)
        if forest is not None:
            positions = forest.position[:, None]
        elif padding_mask is None:
            positions = torch.arange(T, device=device) if cache is None else cache.positions(T)
        else:
            positions = (padding_mask.long().cumsum(-1) - 1).clamp(min=0)[:, None, past : past + T]
        embedded_ids = input_ids
        if self.config.reads_token_before and cache is not None:
            # The first new token needs the last cached one.
            embedded_ids = cache.remember(input_ids)
        again = embedded_ids.shape[1] - T
        x_BTC = self.embed(embedded_ids)
        if self.config.learned_positions:
            x_BTC = x_BTC + self.position_embed(positions.view(-1, T))
        if self.config.embedding_scale is not None:
            # The scale is rounded to the weights' dtype first, as in Gemma's training.
            x_BTC = (
                x_BTC
                * torch.tensor(self.config.embedding_scale, dtype=x_BTC.dtype, device="cpu").item()
            )
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            # Keep the residual stream in the compute dtype: this halves the memory traffic, and the
            # products read that dtype anyway.
            x_BTC = x_BTC.to(torch.get_autocast_dtype(device.type))
        # Compute masks and rotations once for each kind of layer. The frequencies are computed here
        # instead of stored, because a buffer left on the meta device would reinitialise a loaded
        # model.
        ropes: dict[str, tuple[Tensor, Tensor] | None] = {"none": None}
        whole_rope = (
            not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            and self.config.rotary_size == self.config.head_dim
        )
        for kind in {self.config.positions(i) for i in range(self.config.num_layers)} - {"none"}:
            cos, sin = rope_cache(self.config, positions, local=kind == "local")
            angles = cos.to(x_BTC.dtype), sin.to(x_BTC.dtype)
            ropes[kind] = for_each_channel(*angles) if whole_rope else angles
        training = self.training and cache is None
        backends = self.backends if training else self.backends.for_evaluation()
        if cache is None:
            masks = build_masks(self.config, backends, input_ids, 0, padding_mask, forest)
        else:
            masks = cache.masks(self.config, backends, input_ids, padding_mask)
        x_BTC = self.embed_norm(x_BTC)
        real = None if padding_mask is None else padding_mask[:, past - again : past + T]
        if self.smear is not None:
            x_BTC = self.smear(x_BTC, embeddings_before(x_BTC, forest, real))
        x_BTC = x_BTC[:, again:]
        if self.bigram is not None:
            before_BT = ids_before(embedded_ids, forest, real)[:, again:]
            x_BTC = x_BTC + self.bigram(input_ids, before_BT, x_BTC.dtype)
        first_BTC = x_BTC if self.config.embedding_mix else None
        middle_BTC = x_BTC
        for i, block in enumerate(self.layers):
            rope, mask = ropes[self.config.positions(i)], masks[self.config.window(i)]
            value_BTE = self.value_embeds.look_up(i, input_ids, x_BTC.dtype)
            x_BTC = block(x_BTC, rope, mask, cache, first_BTC, value_BTE)
            if i == self.config.backout_layer:
                middle_BTC = x_BTC
        if self.backout is not None:
            x_BTC = self.backout(x_BTC, middle_BTC)
        if cache is not None:
            cache.advance(T)
        return self.norm(x_BTC)

    def logits(self, x_BTC: Tensor) -> Tensor:
        """Apply the head: (..., C) -> (..., V), see `LMHead.logits`."""
        return self.lm_head.logits(x_BTC)

    def token_losses(
        self,
        input_ids: Tensor,
        labels: Tensor,
        document_ids: Tensor | None = None,
        forest: Forest | None = None,
    ) -> Tensor:
        """Cross-entropy of each position in nats: float32 (B, T).

        The loss is 0 where ``labels`` (B, T) is -100. With ``document_ids`` or ``forest`` (see
        `hidden_states`) the head computes labelled positions only. In a conversation these are
        about half of all positions, and the logits of a large vocabulary take most of the memory of
        such a step.
        """
        x_BTC = self.hidden_states(input_ids, document_ids=document_ids, forest=forest)
        if document_ids is None and forest is None:
            return self.lm_head(x_BTC, labels)
        return self.lm_head.labelled_losses(x_BTC, labels)

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        document_ids: Tensor | None = None,
        skip_ignored_labels: bool = False,
        forest: Forest | None = None,
        label_weights: Tensor | None = None,
    ) -> Tensor:
        """The sum of `token_losses`, for training: a float32 scalar, see `LMHead.loss`.

        With ``label_weights`` (float32 (B, T)) each loss is multiplied by its label's weight.
        """
        x_BTC = self.hidden_states(input_ids, document_ids=document_ids, forest=forest)
        return self.lm_head.loss(x_BTC, labels, skip_ignored_labels, label_weights)

    def take_router_loss(self) -> Tensor | None:
        """Return the router loss to add to a token's loss, and clear it.

        It is the mean over the layers with experts in the forward pass since the last call, a
        scalar. None in evaluation, without experts, and if both weights in the config are 0.
        """
        losses = []
        for block in self.layers:
            if isinstance(block.mlp, MixtureOfExperts) and block.mlp.router_loss is not None:
                losses.append(block.mlp.router_loss)
                block.mlp.router_loss = None  # frees the graph of the forward pass
        return torch.stack(losses).mean() if losses else None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        prepare: Callable[[Transformer], None] | None = None,
        convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
    ) -> Transformer:
        """Load a Hugging Face directory (config.json + safetensors) or a GGUF file.

        Args:
            path: see `locate`.
            dtype: of the weights. None: the file's dtype (float32 for GGUF).
            prepare: called with the model on the meta device before the weights are loaded. It may
                change layers (LoRA).
            convert: called with name and value of each weight as soon as it is read. What it
                returns is loaded instead.

        Raises:
            UserError: for a missing or broken file, an unknown architecture or an unknown tensor
                name.
        """
        found = locate(path)
        return format_of(found).read_model(found, dtype, prepare, convert)

    def save_pretrained(
        self,
        path: str | Path,
        dtype: torch.dtype | None = None,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a Hugging Face directory.

        transformers and vLLM load a model of a known family (docs/families.md). Any other model
        brings its own modelling file, if `lit_llm.models.hub.remote_code` can express it:
        transformers loads it with ``trust_remote_code=True``.

        Args:
            path: the directory; created if necessary.
            dtype: of the weights in the file. None: the dtype of each weight.
            state_dict: weights to write instead of the model's own, under the same names.
        """
        write_model(self, Path(path), dtype, state_dict)
