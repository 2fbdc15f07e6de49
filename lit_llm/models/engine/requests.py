"""What a caller gives to the engine, and what the engine gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lit_llm.models.generation.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingSettings(Sampling):
    """`Sampling` with the settings of OpenAI's API, which apply after the repetition penalty."""

    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer has so far."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that the answer has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit."""


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to one prompt."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingSettings = SamplingSettings()
    seed: int = 0
    choice: int = 0
    """Number of this answer among those to the same prompt and seed."""
    stop_ids: Sequence[int] = ()
    top_logprobs: int | None = None
    """None: no log-probabilities. Else the number of alternatives beside each token's own."""
    grammar: str | None = None
    """A grammar that llguidance understands, as JSON. None: any text."""
    adapter: str | None = None
    """Name of a LoRA adapter. None: the base."""
    scope: str = ""
    """Prefixes are shared between requests of one scope only."""


@dataclass(frozen=True)
class GeneratedToken:
    """A token with, if they were asked for, its log-probability and the most likely ones'.

    Log-probabilities are of the unmodified distribution, in nats.
    """

    id: int
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer; the last event of its request."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that the prefix cache held."""
    new_tokens: int
    """Number of `GeneratedToken` events; a stop token is none of them."""
    stop_id: int | None = None
    """The token of ``stop_ids`` that ended the answer."""
    error: str | None = None
    """What happened, without any text of the request."""


Event = GeneratedToken | Finished
OnEvent = Callable[[Event], None]
"""Called from the engine's thread, in order; must return at once and must not raise."""


class Handle(Protocol):
    """A request that was admitted."""

    def cancel(self) -> None:
        """End the request within one step; "cancelled" is then the reason. Any thread may call."""


class QueueFull(Exception):
    """The engine's waiting queue is full; the request was not admitted and may be tried again."""


class GenerationEngine(Protocol):
    """What a server needs of an engine."""

    max_seq_len: int

    def submit(self, request: GenerationRequest, on_event: OnEvent) -> Handle:
        """Admit a request. Any thread may call.

        Raises:
            QueueFull: too many requests or prompt tokens wait.
            UserError: a request that can never run, such as a prompt beyond the context.
        """

    def alive(self) -> bool:
        """Whether the loop's thread runs and its current step is within the time limit."""

    def close(self, grace: float) -> None:
        """Take no more requests, finish the running ones within ``grace`` seconds, end the rest."""
