"""lit_llm's transformer for transformers, in plain torch.

transformers loads the directory that holds this file with ``trust_remote_code=True``. The file
needs torch and transformers alone. config.json keeps the fields of lit_llm's TransformerConfig
under the key "transformer"; the tensors have lit_llm's names.

Shapes: B batch, T new positions, S cached and new positions, C hidden width, H query heads, K
key/value heads, D head width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


class LitLLMConfig(PretrainedConfig):
    """The fields of TransformerConfig in ``transformer``, and the names that programs look for."""

    model_type = "lit_llm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, transformer: dict | None = None, **kwargs: Any) -> None:
        self.transformer = dict(transformer or {})
        if self.transformer:
            t = self.transformer
            kwargs |= {
                "vocab_size": t["vocab_size"],
                "hidden_size": t["hidden_size"],
                "intermediate_size": t["intermediate_size"],
                "num_hidden_layers": t["num_layers"],
                "num_attention_heads": t["num_heads"],
                "num_key_value_heads": t["num_kv_heads"],
                "head_dim": t["head_dim"],
                "max_position_embeddings": t["max_seq_len"],
                "tie_word_embeddings": t["tie_embeddings"],
            }
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if kwargs.get(name) is None:
                    kwargs[name] = t[name]
        super().__init__(**kwargs)


class RMSNorm(nn.Module):
    """Computed in float32. With ``offset`` the gain is 1 + weight, and is applied in float32."""

    def __init__(self, t: dict, size: int) -> None:
        super().__init__()
        self.eps, self.offset, self.size = t["norm_eps"], t["norm_offset"], size
        self.weight = nn.Parameter(torch.ones(size)) if t["norm_weight"] else None

    def forward(self, x: Tensor) -> Tensor:
        wide = F.rms_norm(x.float(), (self.size,), eps=self.eps)
        if self.weight is None:
            return wide.to(x.dtype)
        if self.offset:
            return (wide * (1 + self.weight.float())).to(x.dtype)
        return wide.to(x.dtype) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + R/2) of the first R channels of (B, heads, T, D)."""
    half = cos.shape[-1]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)


class HeadGate(nn.Linear):
    """A factor from 0 to 3 for each value head, from the first channels of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.sigmoid(F.linear(x[..., : self.in_features], self.weight))


class Attention(nn.Module):
    """Causal attention with grouped queries, windows, and value embeddings."""

    def __init__(self, t: dict, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, t["head_dim"]
        self.num_heads, self.num_kv_heads = t["num_heads"], t["num_kv_heads"]
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(t["hidden_size"], queries, bias=t["attention_bias"])
        self.k_proj = nn.Linear(t["hidden_size"], keys, bias=t["attention_bias"])
        self.v_proj = nn.Linear(t["hidden_size"], keys, bias=t["attention_bias"])
        self.o_proj = nn.Linear(queries, t["hidden_size"], bias=t["attention_output_bias"])
        self.scale, self.qk_norm = t["attention_scale"], t["qk_norm"]
        self.exclusive = t["exclusive_attention"]
        if self.qk_norm != "none":
            self.q_norm, self.k_norm = RMSNorm(t, self.head_dim), RMSNorm(t, self.head_dim)
        self.value_gate = None
        if t["value_gate_channels"] is not None and layer in (t["value_embeddings"] or []):
            self.value_gate = HeadGate(t["value_gate_channels"], self.num_kv_heads, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        cache: Cache | None,
        rows: Tensor | None,
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.num_kv_heads, self.head_dim)
        if rows is not None:
            rows = rows.view_as(v)
            v = v + (rows if self.value_gate is None else rows * self.value_gate(x)[..., None])
        v = v.transpose(1, 2)
        if self.qk_norm == "before_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if self.qk_norm == "after_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        times = self.num_heads // self.num_kv_heads
        own = v.repeat_interleave(times, 1).float()
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        if self.exclusive:
            # Without the component along the token's own value (arXiv:2603.09078).
            square = own.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            share = (y.float() * own).sum(-1, keepdim=True) / square
            y = (y.float() - share * own).to(y.dtype)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Two projections around an activation; three if the MLP is gated."""

    def __init__(self, t: dict) -> None:
        super().__init__()
        self.kind, self.gated = t["mlp"], t["mlp"] in ("swiglu", "geglu")
        width, bias = t["intermediate_size"], t["mlp_bias"]
        if self.gated:
            self.gate_proj = nn.Linear(t["hidden_size"], width, bias=bias)
        self.up_proj = nn.Linear(t["hidden_size"], width, bias=bias)
        self.down_proj = nn.Linear(width, t["hidden_size"], bias=bias)

    def activation(self, x: Tensor) -> Tensor:
        if self.kind == "swiglu":
            return F.silu(x)
        if self.kind == "relu2":
            return F.relu(x).square()
        return F.gelu(x, approximate="none" if self.kind == "gelu_erf" else "tanh")

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.activation(self.up_proj(x)))


class Mix(nn.Module):
    """Learned factors of the stream and of the first embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.residual, self.first = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))


class Block(nn.Module):
    """Attention and MLP, each added to the stream."""

    def __init__(self, t: dict, layer: int) -> None:
        super().__init__()
        self.scale = 1.0 if t["residual_scale"] is None else t["residual_scale"]
        self.mix = Mix() if t["embedding_mix"] else None

        def norm(there: bool) -> nn.Module:
            return RMSNorm(t, t["hidden_size"]) if there else nn.Identity()

        self.attention_norm, self.attention_post_norm = norm(t["pre_norm"]), norm(t["post_norm"])
        self.attention = Attention(t, layer)
        self.mlp_norm, self.mlp_post_norm = norm(t["pre_norm"]), norm(t["post_norm"])
        self.mlp = MLP(t)

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        cache: Cache | None,
        rows: Tensor | None,
    ) -> Tensor:
        if self.mix is not None:
            x = x * self.mix.residual + first * self.mix.first
        attended = self.attention(self.attention_norm(x), rope, mask, cache, rows)
        x = x + self.attention_post_norm(attended) * self.scale
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))) * self.scale


class Smear(nn.Module):
    """Adds a gated share of the embedding of the token before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        gate = self.scale * torch.sigmoid(x[..., : len(self.weight)] @ self.weight)[..., None]
        return x + gate * before


class Bigram(nn.Module):
    """A row of a table for each pair of a token and the one before it; pairs share rows."""

    def __init__(self, t: dict) -> None:
        super().__init__()
        self.table = nn.Embedding(t["bigram_rows"], t["hidden_size"])
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
        found = self.table((before * 36313 ^ ids * 27191) % self.table.num_embeddings)
        return (found * self.scale).masked_fill((before < 0)[..., None], 0.0).to(dtype)


class Backout(nn.Module):
    """The share of a middle layer's output that is subtracted at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))


class LitLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its head."""

    config_class = LitLLMConfig
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _tied_weights_keys = {"head.weight": "embed.weight"}

    def __init__(self, config: LitLLMConfig) -> None:
        super().__init__(config)
        t = self.t = config.transformer
        self.embed = nn.Embedding(t["vocab_size"], t["hidden_size"])
        norm = t["embedding_norm"]
        self.embed_norm = RMSNorm(t, t["hidden_size"]) if norm else nn.Identity()
        self.smear = None if t["smear_channels"] is None else Smear(t["smear_channels"])
        self.bigram = None if t["bigram_rows"] is None else Bigram(t)
        width = t["num_kv_heads"] * t["head_dim"]
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(t["vocab_size"], width) for i in t["value_embeddings"] or []}
        )
        self.layers = nn.ModuleList(Block(t, i) for i in range(t["num_layers"]))
        self.backout = None if t["backout_layer"] is None else Backout()
        self.norm = RMSNorm(t, t["hidden_size"])
        self.head = nn.Linear(t["hidden_size"], t["vocab_size"], bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.head = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V).

        ``attention_mask`` is (B, S), 1 at tokens and 0 at padding. ``labels`` (B, T) are the input
        ids, -100 where no loss is wanted, and are shifted here.
        """
        t, (_, T) = self.t, input_ids.shape
        cache = past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        real = None if attention_mask is None else attention_mask.bool()
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=input_ids.device)[None]
            if real is not None:
                position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        x = self.embed_norm(self._embed(input_ids))
        if self.smear is not None or self.bigram is not None:
            before = self._before(input_ids, real, past, cache)
            if self.smear is not None:
                rows = self.embed_norm(self._embed(before.clamp(min=0)))
                x = self.smear(x, rows.masked_fill((before < 0)[..., None], 0.0))
            if self.bigram is not None:
                x = x + self.bigram(input_ids, before, x.dtype)
        first = middle = x
        rope = self._rope(position_ids, x.dtype)
        windows = [self._window(i) for i in range(len(self.layers))]
        masks = {w: self._mask(T, past, w, real, x.device) for w in set(windows)}
        for i, block in enumerate(self.layers):
            rows = None
            if str(i) in self.value_embeds:
                rows = self.value_embeds[str(i)](input_ids).to(x.dtype)
            turned = None if i in (t["nope_layers"] or []) else rope
            x = block(x, first, turned, masks[windows[i]], cache, rows)
            if i == t["backout_layer"]:
                middle = x
        if self.backout is not None:
            x = x - middle * self.backout.scale
        logits = self.head(self.norm(x[:, -logits_to_keep:] if logits_to_keep else x))
        if t["logit_scale"] is not None:
            logits = logits * t["logit_scale"]
        if t["logit_softcap"] is not None:
            logits = t["logit_softcap"] * torch.tanh(logits.float() / t["logit_softcap"])
        loss = None
        if labels is not None:
            rows, targets = logits[:, :-1].float(), labels[:, 1:]
            loss = F.cross_entropy(rows.flatten(0, 1), targets.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _embed(self, ids: Tensor) -> Tensor:
        x, scale = self.embed(ids), self.t["embedding_scale"]
        # lit_llm rounds the scale to the weights' dtype.
        return x if scale is None else x * torch.tensor(scale, dtype=x.dtype, device="cpu").item()

    def _before(
        self, input_ids: Tensor, real: Tensor | None, past: int, cache: Cache | None
    ) -> Tensor:
        """Id of the token before each token, (B, T); -1 at the start of a text.

        The ids are kept in one more layer of the cache, so that beam search and cropping treat them
        as keys.
        """
        before = F.pad(input_ids[:, :-1], (1, 0), value=-1)
        if cache is not None:
            if len(cache.layers) == len(self.layers):
                cache.layers.append(DynamicLayer())
            ids = input_ids[:, None, :, None]
            known, _ = cache.update(ids, ids, len(self.layers))
            if past:
                before[:, 0] = known[:, 0, past - 1, 0]
        if real is not None:
            before = before.masked_fill(
                ~F.pad(real, (1, 0))[:, past : past + input_ids.shape[1]], -1
            )
        return before

    def _window(self, layer: int) -> int | None:
        layers = self.t["sliding_layers"]
        return self.t["sliding_window"] if layers is None or layer in layers else None

    def _mask(
        self, T: int, past: int, window: int | None, real: Tensor | None, device: torch.device
    ) -> Tensor:
        """bool, (T, S) or (B, 1, T, S): True where a query sees a key."""
        queries = torch.arange(past, past + T, device=device)[:, None]
        keys = torch.arange(past + T, device=device)[None]
        mask = keys <= queries
        if window is not None:
            mask = mask & (keys > queries - window)
        if real is None:
            return mask
        # A padded query sees itself, so that its softmax has a term.
        return (mask & real[:, None, None, :]) | (keys == queries)

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, T, R / 2), computed in float32."""
        size = int(self.t["head_dim"] * self.t["rotary_fraction"])
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device)
        angles = positions[:, None, :, None].float() / self.t["rope_theta"] ** (steps / size)
        return angles.cos().to(dtype), angles.sin().to(dtype)
