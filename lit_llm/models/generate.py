"""Sampling from a model with a key/value cache: batched prompts of different lengths, seeded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.attention import KVCache
from lit_llm.models.transformer import Transformer


def sample(
    logits_BV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row of ``logits_BV`` (B, V): int64 (B,).

    temperature 0 is greedy. top_k keeps the k most likely tokens, top_p (nucleus, arXiv:1904.09751) the smallest set
    of most likely tokens whose probabilities reach p.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        kth = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits_BV.sort(dim=-1, descending=True)
        probabilities = sorted_logits.softmax(-1)
        # A token goes when those before it already reach p: the first always stays.
        drop = (probabilities.cumsum(-1) - probabilities) >= top_p
        logits_BV = logits_BV.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(-1)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continue each prompt; returns the new tokens alone, cut before the first of ``stop_ids``.

    Prompts of different lengths are padded on the left and masked, so a prompt's greedy answer does not depend on its
    company. A seed gives the same answers for the same batch on the same device.

    Raises:
        UserError: an empty prompt or batch, a bad setting, or more tokens than the model's max_seq_len.
    """
    if not prompts or any(len(p) == 0 for p in prompts):
        raise UserError("every prompt needs at least one token")
    if (
        max_new_tokens < 1
        or temperature < 0
        or (top_k is not None and top_k < 1)
        or (top_p is not None and not 0 < top_p <= 1)
    ):
        raise UserError("need max_new_tokens >= 1, temperature >= 0, top_k >= 1 and 0 < top_p <= 1")
    longest = max(len(p) for p in prompts)
    if longest + max_new_tokens > model.config.max_seq_len:
        raise UserError(
            f"prompt of {longest} tokens + {max_new_tokens} new ones exceed max_seq_len={model.config.max_seq_len}"
        )
    if max(max(p) for p in prompts) >= model.config.vocab_size:
        raise UserError(f"a prompt has a token id beyond vocab_size={model.config.vocab_size}")
    device = model.embed.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    batch = len(prompts)
    ids = torch.zeros(batch, longest, dtype=torch.long)
    real = torch.zeros(batch, longest + max_new_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = True
    ids, real = ids.to(device), real.to(device)
    padded = len({len(p) for p in prompts}) > 1
    dtype = model.embed.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    cache = KVCache(model.config, batch, longest + max_new_tokens, device, dtype)

    was_training = model.training
    model.eval()
    new: list[Tensor] = []
    stopped = torch.zeros(batch, dtype=torch.bool, device=device)
    stops = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
    step_input = ids
    for _ in range(max_new_tokens):
        mask = real[:, : cache.length + step_input.shape[1]] if padded else None
        with torch.compiler.set_stance("force_eager"):  # every length is a new shape
            logits = model(step_input, padding_mask=mask, cache=cache, last_only=True)[:, -1]
        token = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        new.append(token)
        stopped |= torch.isin(token, stops)
        if len(stop_ids) and bool(stopped.all()):
            break
        step_input = token[:, None]
    model.train(was_training)

    stop_set = set(stop_ids)
    answers = []
    for row in torch.stack(new, 1).tolist():
        end = next((i for i, token in enumerate(row) if token in stop_set), len(row))
        answers.append(row[:end])
    return answers
