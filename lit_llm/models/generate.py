"""Sampling from a model with a key/value cache: a batch of prompts at once, or one prompt token by token.

Shapes: B batch, T new positions, S cached and new positions together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.attention import KVCache
from lit_llm.models.tokenizer import Tokenizer
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
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(model, prompts, max_new_tokens)
    pick = _picker(model, temperature, top_k, top_p, seed)
    ids_BT, real_BS, cache = padded_batch(model, prompts, max_new_tokens)
    stops = torch.tensor(list(stop_ids), dtype=torch.long, device=ids_BT.device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=ids_BT.device)
    new: list[Tensor] = []
    with closing(_decode(model, ids_BT, real_BS, cache, max_new_tokens, pick)) as tokens:
        for token in tokens:
            new.append(token)
            stopped |= torch.isin(token, stops)
            if len(stop_ids) and bool(stopped.all()):
                break

    stop_set = set(stop_ids)
    answers = []
    for row in torch.stack(new, 1).tolist():
        end = next((i for i, token in enumerate(row) if token in stop_set), len(row))
        answers.append(row[:end])
    return answers


class PromptCache:
    """What `stream` keeps between prompts of one model, so that a prompt costs only what differs from the last one.

    Every turn of a chat repeats the conversation so far; with this, only the new turn passes through the model.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []  # of the last prompt and its answer: what the filled positions stand for
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def rewind(self, model: Transformer, prompt: Sequence[int], capacity: int) -> KVCache:
        """A cache of at least ``capacity`` positions, filled with as much of ``prompt``'s beginning as is known.

        The prompt's last token is never part of it: its logits are what decoding starts from.
        """
        old = self._cache
        known = 0 if old is None else min(old.length, len(prompt) - 1)
        common = next((i for i in range(known) if self.ids[i] != prompt[i]), known)
        if old is None or old.capacity < capacity:
            # Doubling keeps the copies few, and a short chat does not pay for the whole context.
            self._cache = _new_cache(model, 1, max(capacity, min(2 * capacity, model.config.max_seq_len)))
            if old is not None:
                self._cache.keys[:, :, :, :common] = old.keys[:, :, :, :common]
                self._cache.values[:, :, :, :common] = old.values[:, :, :, :common]
        assert self._cache is not None
        self._cache.length = common
        self.ids = list(prompt)
        return self._cache


def stream(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    cache: PromptCache | None = None,
) -> Generator[int, None, None]:
    """The tokens that `generate` would answer ``prompt`` with, each as soon as it is known.

    The iterator may be left at any point. With ``cache``, what earlier calls with the same model and cache computed is
    used again; the answer is the same without, up to the rounding of matrix products of another shape.

    Raises:
        UserError: as `generate`, at the call.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    _check_prompts(model, [prompt], max_new_tokens)
    pick = _picker(model, temperature, top_k, top_p, seed)
    return _stream(model, prompt, max_new_tokens, pick, frozenset(stop_ids), cache or PromptCache())


def _stream(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    pick: Callable[[Tensor], Tensor],
    stop_ids: frozenset[int],
    cache: PromptCache,
) -> Generator[int, None, None]:
    filled = cache.rewind(model, prompt, len(prompt) + max_new_tokens)
    ids = torch.tensor([prompt[filled.length :]], device=model.embed.weight.device)
    with closing(_decode(model, ids, None, filled, max_new_tokens, pick)) as tokens:
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
    pick: Callable[[Tensor], Tensor],
) -> Generator[Tensor, None, None]:
    """The loop behind `generate` and `stream`: int64 (B,) a step. ``real_BS`` is False at padding."""
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            token_B = _step(model, ids_BT, real_BS, cache, pick)
            yield token_B
            ids_BT = token_B[:, None]
    finally:
        model.train(was_training)


@torch.inference_mode()  # a step at a time: around the loop it would stay on in the caller while a yield waits
def _step(
    model: Transformer, ids_BT: Tensor, real_BS: Tensor | None, cache: KVCache, pick: Callable[[Tensor], Tensor]
) -> Tensor:
    mask = None if real_BS is None else real_BS[:, : cache.length + ids_BT.shape[1]]
    with torch.compiler.set_stance("force_eager"):  # every length is a new shape
        logits_BTV = model(ids_BT, padding_mask=mask, cache=cache, last_only=True)
    return pick(logits_BTV[:, -1])


def padded_batch(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[Tensor, Tensor | None, KVCache]:
    """Prompts padded on the left, on the model's device, and room for their answers.

    Returns:
        ids: int64 (B, longest).
        real: bool (B, longest + max_new_tokens), False at padding; None where there is none.
        cache: empty.
    """
    longest, batch = max(len(p) for p in prompts), len(prompts)
    ids = torch.zeros(batch, longest, dtype=torch.long)
    real = torch.zeros(batch, longest + max_new_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = True
    device = model.embed.weight.device
    padded = any(len(p) < longest for p in prompts)
    return ids.to(device), real.to(device) if padded else None, _new_cache(model, batch, longest + max_new_tokens)


def _new_cache(model: Transformer, batch: int, capacity: int) -> KVCache:
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return KVCache(model.config, batch, capacity, device, dtype)


def _picker(
    model: Transformer, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> Callable[[Tensor], Tensor]:
    """`sample` with its settings, and a random stream of its own on the model's device."""
    generator = torch.Generator(device=model.embed.weight.device).manual_seed(seed)
    return partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise UserError for a setting of `generate` that is out of range."""
    if (
        max_new_tokens < 1
        or temperature < 0
        or (top_k is not None and top_k < 1)
        or (top_p is not None and not 0 < top_p <= 1)
    ):
        raise UserError("need max_new_tokens >= 1, temperature >= 0, top_k >= 1 and 0 < top_p <= 1")


def _check_prompts(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if not prompts or any(len(p) == 0 for p in prompts):
        raise UserError("every prompt needs at least one token")
    longest = max(len(p) for p in prompts)
    if longest + max_new_tokens > model.config.max_seq_len:
        raise UserError(
            f"prompt of {longest} tokens + {max_new_tokens} new ones exceed max_seq_len={model.config.max_seq_len}"
        )
    if max(max(p) for p in prompts) >= model.config.vocab_size:
        raise UserError(f"a prompt has a token id beyond vocab_size={model.config.vocab_size}")


class TextStream:
    """Tokens in, text out as it can be shown: whole characters, and nothing of a stop string.

    A character can be spread over tokens, and so can a stop string: what may still become one is held back. The pieces
    together are ``tokenizer.decode`` of all tokens, cut where the first completed stop string begins.

    Attributes:
        stopped: a stop string has come; push no more.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("a stop string must not be empty")
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._shown = 0  # tokens of ``_ids`` whose text has been passed on: the context of those that follow
        self._held = ""

    def push(self, token: int) -> str:
        """The text that ``token`` makes showable; often a word, sometimes nothing."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """At the end: what was held back, U+FFFD for an unfinished character."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        # Decoders treat the first token of a text specially, so new tokens are decoded behind those just shown.
        before = self._tokenizer.decode(self._ids[: self._shown])
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and not final:
            return ""
        self._held += text[len(before) :]
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        # The string completed first counts, not the one that begins first, whatever pieces the tokens come in.
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._held[: min(ends)[1]]
        keep = 0 if final else self._unfinished_stop()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _unfinished_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
