"""Generation as lm-eval asks for it: stop strings, a seed for every request, ranks that keep step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.generate import padded_batch
from lit_llm.models.sampling import Sampler, Sampling
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class Decoding:
    """How a request wants its answer: equal ones share a batch."""

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling

    @classmethod
    def from_request(cls, arguments: dict[str, Any], max_new_tokens: int) -> Decoding:
        """Read lm-eval's ``generation_kwargs``; ``max_new_tokens`` holds where they name none.

        Raises:
            UserError: a setting that is not known here.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        rest: dict[str, Any] = dict(normalize_gen_kwargs(arguments, max_new_tokens))
        sampled = rest.pop("do_sample")
        settings = {name: rest.pop(name) for name in SAMPLING if name in rest}
        if not sampled:
            settings["temperature"] = 0.0
        how = cls(
            until=tuple(text for text in rest.pop("until") if text),
            max_new_tokens=rest.pop("max_gen_toks"),
            sampling=Sampling(**settings),
        )
        if rest:
            raise UserError(f"generation_kwargs: {', '.join(rest)} is not supported; known are until, max_gen_toks, "
                            f"do_sample, {', '.join(SAMPLING)}")  # fmt: skip
        return how


def decode(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    *,
    seeds: Sequence[int],
    stop_ids: set[int],
) -> list[str]:
    """The text each prompt is continued with, cut before the first stop string or token.

    Every row draws from a generator of its own, so an answer depends neither on its company nor on the rank. With
    torch.distributed, all ranks must call this together: each goes on with empty steps until the last is done, because
    sharded weights are gathered by all at once.
    """
    step_input, real, cache = padded_batch(model, prompts, how.max_new_tokens)
    device = step_input.device
    empty_step = step_input[:1, :1]
    pick = _picker(how.sampling, seeds, prompts, model.config.vocab_size, device)
    stops = stop_ids | {
        tokenizer.control_tokens[text] for text in how.until if text in tokenizer.control_tokens
    }

    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    while _on_any_rank(bool(going), device):
        if not going:
            model(empty_step, last_only=True)
            continue
        mask = None if real is None else real[:, : cache.length + step_input.shape[1]]
        logits = model(step_input, padding_mask=mask, cache=cache, last_only=True)[:, -1]
        tokens = pick(logits)
        step_input = tokens[:, None]
        chosen = tokens.tolist()
        for row in list(going):
            if chosen[row] in stops:
                going.remove(row)
                continue
            written[row].append(chosen[row])
            text = tokenizer.decode(written[row], skip_special_tokens=True)
            if len(written[row]) == how.max_new_tokens or any(stop in text for stop in how.until):
                going.remove(row)
    answers = [tokenizer.decode(row, skip_special_tokens=True) for row in written]
    for stop in how.until:
        answers = [answer.split(stop)[0] for answer in answers]
    return answers


def _picker(
    sampling: Sampling,
    seeds: Sequence[int],
    prompts: Sequence[Sequence[int]],
    vocab_size: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """Logits (B, V) -> the next token of every row, int64 (B,)."""
    if sampling.temperature == 0:  # nothing is drawn: one call for all rows
        return Sampler(sampling, 0, prompts, vocab_size, device)
    rows = [
        Sampler(sampling, seed, [prompt], vocab_size, device)
        for seed, prompt in zip(seeds, prompts, strict=True)
    ]
    return lambda logits_BV: torch.cat(
        [row(logits) for row, logits in zip(rows, logits_BV.split(1), strict=True)]
    )


def _on_any_rank(here: bool, device: torch.device) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return here
    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
