"""Settings of lm-eval's generation, and a generation loop for ranks in lockstep.

The loop serves models whose weights are divided among ranks, and models under autocast. All others
are served by the engine (`lit_llm.evaluate.engine_answers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.evaluate.scoring.plain import LogitsModel
from lit_llm.models.generation.generate import padded_batch
from lit_llm.models.generation.sampling import Sampler, Sampling
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

SAMPLING = tuple(field.name for field in fields(Sampling))
_TOP_K = 50  # default of transformers' generate() if neither the request nor the model sets it
# Settings of transformers' generate() that are not implemented here, with the values that have no
# effect. None and an empty list never have an effect.
_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "penalty_alpha": (0,),
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,), "min_length": (0,), "min_new_tokens": (0,),
    "guidance_scale": (1,), "token_healing": (False,), "dola_layers": (), "bad_words_ids": (),
    "force_words_ids": (), "constraints": (), "sequence_bias": (), "suppress_tokens": (),
    "begin_suppress_tokens": (), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "watermarking_config": (), "stop_strings": (),
    "max_time": (),
}  # fmt: skip
# More such settings, which generate() reads only for sampling.
_OFF_SAMPLED: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": (),
}  # fmt: skip
# Settings that never change the text without beam search: they concern beams, memory and further
# outputs.
_WITHOUT_EFFECT = frozenset([
    "early_stopping", "length_penalty", "diversity_penalty", "use_cache", "cache_implementation",
    "cache_config", "max_cache_len", "low_memory", "prefill_chunk_size", "disable_compile",
    "compile_config", "output_scores", "output_logits", "output_attentions",
    "output_hidden_states", "return_dict_in_generate", "renormalize_logits",
    "remove_invalid_values",
])  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of a request. Requests with equal settings share a batch."""

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling

    @classmethod
    def from_request(
        cls,
        arguments: dict[str, Any],
        max_new_tokens: int,
        generation_config: dict[str, Any] | None = None,
    ) -> Decoding:
        """Read lm-eval's ``generation_kwargs`` as its ``hf`` backend and transformers do.

        Args:
            arguments: the request's settings. Other settings of ``generate`` are accepted if their
                value has no effect.
            max_new_tokens: for a request without a limit.
            generation_config: the model's, for settings that the request does not have.

        Raises:
            UserError: an unknown setting, or one that would change the text and is not implemented.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        given = {name: value for name, value in arguments.items() if value is not None}
        rest: dict[str, Any] = dict(normalize_gen_kwargs(given, max_new_tokens))
        sampled = rest.pop("do_sample")
        until = tuple(text for text in rest.pop("until") if text)
        length = rest.pop("max_gen_toks")
        _refuse(rest, sampled, "generation_kwargs", or_unknown=True)
        defaults = {
            name: value
            for name, value in (generation_config or {}).items()
            if name not in rest and value is not None
        }
        _refuse(defaults, sampled, "the model's generation_config.json", or_unknown=False)
        settings = {name: value for name, value in (defaults | rest).items() if name in SAMPLING}
        return cls(until=until, max_new_tokens=length, sampling=_sampling(settings, sampled))


def _refuse(settings: dict[str, Any], sampled: bool, origin: str, or_unknown: bool) -> None:
    """Raise a UserError that names settings which change the text and are not implemented."""
    off = _OFF | (_OFF_SAMPLED if sampled else {})
    # Greedy decoding ignores settings of sampling.
    fine = {*SAMPLING, *_WITHOUT_EFFECT, *(() if sampled else _OFF_SAMPLED)}
    wrong = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if name not in fine
        and (name in off or or_unknown)
        and not (name in off and (value in off[name] or value == []))
    ]
    if wrong:
        raise UserError(
            f"{origin}: {', '.join(wrong)} is not supported; known are until, max_gen_toks, "
            f"do_sample, {', '.join(SAMPLING)}"
        )


def _sampling(settings: dict[str, Any], sampled: bool) -> Sampling:
    """Convert transformers' settings: there top_k=0 means no limit, top_p=0 the likeliest token."""
    if not sampled:
        penalty = settings.get("repetition_penalty", 1.0)
        return Sampling(temperature=0.0, repetition_penalty=penalty)
    settings = {"top_k": _TOP_K, **settings}
    if settings["top_k"] == 0:
        settings["top_k"] = None
    if settings.get("top_p") == 0:
        settings |= {"top_k": 1, "top_p": None}
    return Sampling(**settings)


def decode(
    model: Transformer | LogitsModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    *,
    seeds: Sequence[int],
    stop_ids: set[int],
) -> list[str]:
    """Continue each prompt and cut the text before the first stop string or stop token.

    Each row has its own random generator, so an answer depends neither on the other rows nor on the
    rank. With torch.distributed, all ranks must call this together. A rank that is done makes empty
    steps until the last rank is done, because all ranks gather sharded weights together.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt.
        how: decoding settings.
        seeds: one seed per prompt.
        stop_ids: tokens that end an answer.
    """
    steps = _PlainSteps(model, prompts) if isinstance(model, LogitsModel) else _CachedSteps(
        model, prompts, how.max_new_tokens
    )  # fmt: skip
    device = next(model.parameters()).device
    stops = stop_tokens(tokenizer, how, stop_ids)
    pick: Callable[[Tensor], Tensor] | None = None

    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    while _on_any_rank(bool(going), device):
        # This rank is done. An empty step keeps it in lockstep with the other ranks.
        if not going:
            steps.empty()
            continue
        logits_BV = steps.logits()
        if pick is None:
            pick = _picker(how.sampling, seeds, prompts, logits_BV.shape[-1], device)
        tokens = pick(logits_BV)
        steps.append(tokens)
        chosen = tokens.tolist()
        # A row ends at a stop token, at the length limit, or when its text contains a stop string.
        for row in list(going):
            if chosen[row] in stops:
                going.remove(row)
                continue
            written[row].append(chosen[row])
            text = tokenizer.decode(written[row], skip_special_tokens=True)
            if len(written[row]) == how.max_new_tokens or any(stop in text for stop in how.until):
                going.remove(row)
    return [cut_text(tokenizer.decode(row, skip_special_tokens=True), how) for row in written]


class _CachedSteps:
    """A Transformer with a cache: the first pass takes the padded prompts, later ones one token."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], most: int):
        self._model = model
        self._input, self._real, self._cache = padded_batch(model, prompts, most)
        self._empty = self._input[:1, :1]

    def logits(self) -> Tensor:
        """Of each row's next token: (B, V)."""
        end = self._cache.length + self._input.shape[1]
        mask = None if self._real is None else self._real[:, :end]
        return self._model(self._input, padding_mask=mask, cache=self._cache, last_only=True)[:, -1]

    def append(self, tokens_B: Tensor) -> None:
        self._input = tokens_B[:, None]

    def empty(self) -> None:
        """A forward pass whose result nobody needs."""
        self._model(self._empty, last_only=True)


class _PlainSteps:
    """A model without a cache: each pass takes all tokens again, padded on the right."""

    def __init__(self, model: LogitsModel, prompts: Sequence[Sequence[int]]):
        self._model = model
        device = next(model.parameters()).device
        rows = [torch.tensor(prompt, device=device) for prompt in prompts]
        self._ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self._lengths_B = torch.tensor([len(row) for row in rows], device=device)

    def logits(self) -> Tensor:
        """Of each row's next token: (B, V)."""
        rows = torch.arange(len(self._ids_BT), device=self._ids_BT.device)
        most = self._model.config.max_seq_len  # a row that waits for others may be longer
        return self._model.logits(self._ids_BT[:, :most])[
            rows, (self._lengths_B - 1).clamp(max=most - 1)
        ]

    def append(self, tokens_B: Tensor) -> None:
        self._ids_BT = torch.nn.functional.pad(self._ids_BT, (0, 1))
        self._ids_BT.scatter_(1, self._lengths_B[:, None], tokens_B[:, None])
        self._lengths_B = self._lengths_B + 1

    def empty(self) -> None:
        """A forward pass whose result nobody needs."""
        self._model.logits(self._ids_BT[:1, :1])


def stop_tokens(tokenizer: Tokenizer, how: Decoding, stop_ids: set[int]) -> set[int]:
    """``stop_ids``, and the control tokens among the stop strings."""
    control = tokenizer.control_tokens
    return stop_ids | {control[text] for text in how.until if text in control}


def cut_text(text: str, how: Decoding) -> str:
    """The text before its first stop string."""
    for stop in how.until:
        text = text.split(stop)[0]
    return text


def _picker(
    sampling: Sampling,
    seeds: Sequence[int],
    prompts: Sequence[Sequence[int]],
    vocab_size: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """Return a function from logits (B, V) to the next token of each row, int64 (B,)."""
    if sampling.is_greedy:  # greedy: no random numbers, so one call serves all rows
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
