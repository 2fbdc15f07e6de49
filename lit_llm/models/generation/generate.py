"""Generate tokens with a key/value cache, for a batch of prompts or for one prompt as a stream.

Shapes: B batch, T new positions, S cached and new positions together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.attention import KVCache
from lit_llm.models.eval_mode import eval_mode
from lit_llm.models.generation.sampling import Sampler, Sampling
from lit_llm.models.transformer import Block, Transformer


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampling: Sampling = Sampling(),  # noqa: B008 -- frozen
    *,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continue each prompt; return only the new tokens, cut before the first of ``stop_ids``.

    Prompts of different lengths are padded on the left and masked, so the greedy answer to a prompt
    does not depend on the other prompts of the batch. A seed gives the same answers for the same
    batch on the same device.

    Args:
        max_new_tokens: of every answer, or one number per prompt; see `room_for`.

    Raises:
        UserError: for an empty prompt or batch, an invalid setting, or more tokens than the model's
            max_seq_len.
    """
    limits = _limits(prompts, max_new_tokens)
    _check_prompts(model, prompts, limits)
    sampler = Sampler(sampling, seed, prompts, model.config.vocab_size, model.embed.weight.device)
    ids_BT, real_BS, cache = padded_batch(model, prompts, limits)
    stops = torch.tensor(list(stop_ids), dtype=torch.long, device=ids_BT.device)
    limits_B = torch.tensor(limits, device=ids_BT.device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=ids_BT.device)
    new: list[Tensor] = []
    with closing(_decode(model, ids_BT, real_BS, cache, max(limits), sampler)) as tokens:
        for token in tokens:
            new.append(token)
            stopped |= torch.isin(token, stops)
            if len(stop_ids) and bool((stopped | (limits_B <= len(new))).all()):
                break

    stop_set = set(stop_ids)
    answers = []
    for row, limit in zip(torch.stack(new, 1).tolist(), limits, strict=True):
        end = next((i for i, token in enumerate(row[:limit]) if token in stop_set), limit)
        answers.append(row[:end])
    return answers


def room_for(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[int]:
    """Number of new tokens for each prompt: ``max_new_tokens``, or the rest of the context.

    The number is below 1 for a prompt that fills the context.
    """
    return [min(max_new_tokens, model.config.max_seq_len - len(prompt)) for prompt in prompts]


class PromptCache:
    """Keys and values that `stream` keeps between prompts of one model.

    Every turn of a chat repeats the conversation so far. With this cache only the tokens that
    differ from the last prompt and its answer pass through the model.
    """

    def __init__(self) -> None:
        # Ids of the last prompt and its answer: the tokens of the filled positions.
        self.ids: list[int] = []
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def rewind(self, model: Transformer, prompt: Sequence[int], capacity: int) -> KVCache:
        """Return a cache for ``capacity`` positions that holds the known start of ``prompt``.

        The prompt's last token is never part of it, because decoding starts from the logits of that
        token.
        """
        old = self._cache
        known = 0 if old is None else min(old.length, len(prompt) - 1)
        common = next((i for i in range(known) if self.ids[i] != prompt[i]), known)
        if old is None or old.capacity < capacity:
            # Doubling the capacity keeps the number of copies low, and a short chat does not
            # allocate the whole context.
            self._cache = _new_cache(
                model, 1, max(capacity, min(2 * capacity, model.config.max_seq_len))
            )
            if old is not None:
                self._cache.take(old, common)
        assert self._cache is not None
        self._cache.length = common
        self.ids = list(prompt)
        return self._cache


def stream(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 -- frozen
    *,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    cache: PromptCache | None = None,
) -> Generator[int, None, None]:
    """Yield the tokens of `generate`'s answer to ``prompt``, each as soon as it is known.

    The iterator may be left at any point. With ``cache``, the results of earlier calls with the
    same model and cache are reused. The answer is the same as without a cache, up to the rounding
    of matrix products of another shape.

    Raises:
        UserError: as `generate`, at the call.
    """
    _check_prompts(model, [prompt], [max_new_tokens])
    sampler = Sampler(sampling, seed, [prompt], model.config.vocab_size, model.embed.weight.device)
    return _stream(
        model, prompt, max_new_tokens, sampler, frozenset(stop_ids), cache or PromptCache()
    )


def _stream(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler,
    stop_ids: frozenset[int],
    cache: PromptCache,
) -> Generator[int, None, None]:
    filled = cache.rewind(model, prompt, len(prompt) + max_new_tokens)
    ids = torch.tensor([prompt[filled.length :]], device=model.embed.weight.device)
    with closing(_decode(model, ids, None, filled, max_new_tokens, sampler)) as tokens:
        for tensor in tokens:
            token = int(tensor)
            if token in stop_ids:
                return
            cache.ids.append(token)
            yield token


def _decode(
    model: Transformer,
    ids_BT: Tensor,
    real_BS: Tensor | None,
    cache: KVCache,
    max_new_tokens: int,
    sampler: Sampler,
) -> Generator[Tensor, None, None]:
    """Run the loop behind `generate` and `stream`; yields int64 (B,) per step.

    ``real_BS`` is False at padding.
    """
    with eval_mode(model):
        for _ in range(max_new_tokens):
            token_B = _step(model, ids_BT, real_BS, cache, sampler)
            yield token_B
            ids_BT = token_B[:, None]


# inference_mode covers one step at a time. Around the loop it would stay on in the caller while a
# yield waits.
@torch.inference_mode()
def _step(
    model: Transformer, ids_BT: Tensor, real_BS: Tensor | None, cache: KVCache, sampler: Sampler
) -> Tensor:
    mask = None if real_BS is None else real_BS[:, : cache.length + ids_BT.shape[1]]
    with torch.compiler.set_stance("force_eager"):  # every length is a new shape
        logits_BTV = model(ids_BT, padding_mask=mask, cache=cache, last_only=True)
    return sampler(logits_BTV[:, -1])


def padded_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
) -> tuple[Tensor, Tensor | None, KVCache]:
    """Pad prompts on the left, on the model's device, and allocate a cache for their answers.

    Args:
        max_new_tokens: of every answer, or one number per prompt. Tokens that a row gets beyond its
            number count as padding, so that a row that waits for other rows stays inside the
            model's context.

    Returns:
        ids: int64 (B, longest).
        real: bool (B, longest + most new tokens), False at padding; None if there is no padding.
        cache: empty.
    """
    limits = _limits(prompts, max_new_tokens)
    longest, batch, most = max(len(p) for p in prompts), len(prompts), max(limits)
    ids = torch.zeros(batch, longest, dtype=torch.long)
    real = torch.zeros(batch, longest + most, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) : longest + limits[row]] = True
    device = model.embed.weight.device
    padded = not bool(real.all())
    return (
        ids.to(device),
        real.to(device) if padded else None,
        _new_cache(model, batch, longest + most),
    )


def _limits(prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]) -> list[int]:
    if isinstance(max_new_tokens, int):
        return [max_new_tokens] * len(prompts)
    return list(max_new_tokens)


def _new_cache(model: Transformer, batch: int, capacity: int) -> KVCache:
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    block = model.layers[0]
    assert isinstance(block, Block)
    return KVCache(model.config, batch, capacity, device, dtype, block.attention.num_kv_heads)


def _check_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> None:
    if not prompts or any(len(p) == 0 for p in prompts):
        raise UserError("every prompt needs at least one token")
    size = model.config.max_seq_len
    for prompt, limit in zip(prompts, limits, strict=True):
        if len(prompt) >= size or len(prompt) + limit > size:
            new = max(limit, 1)
            raise UserError(
                f"prompt of {len(prompt)} tokens + {new} new ones exceed max_seq_len={size}"
            )
        if limit < 1:
            raise UserError(f"max_new_tokens={limit}: must be >= 1")
    if max(max(p) for p in prompts) >= model.config.vocab_size:
        raise UserError(f"a prompt has a token id beyond vocab_size={model.config.vocab_size}")
