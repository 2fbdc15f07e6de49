"""One request inside the engine: its tokens so far, and how far they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_llm.models.engine.grammar import GrammarState
from lit_llm.models.engine.requests import FinishReason, GenerationRequest, OnEvent
from lit_llm.models.engine.slots import CHUNK, chunks_of


@dataclass(eq=False)
class Sequence:
    """A request and its state.

    Attributes:
        number: in the order of arrival.
        tokens: the prompt and the answer so far.
        computed: positions whose keys and values are in the slot.
        capacity: of its slot; 0 while it waits for one.
    """

    number: int
    request: GenerationRequest
    on_event: OnEvent
    tokens: list[int] = field(init=False)
    computed: int = 0
    capacity: int = 0
    cached_tokens: int = 0
    served: int = 0
    """Step in which it arrived, or was given a chunk of its prompt last."""
    preempted_by: set[Sequence] = field(default_factory=set)
    digests: list[bytes] | None = None
    """Of the prompt's chunks; computed when they are first needed."""
    grammar: GrammarState | None = None
    """How far the answer has got in the request's grammar, from its first token on."""
    cancelled: bool = False
    """Set by any thread."""
    finished: FinishReason | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def waits_for_prompt(self) -> bool:
        """Whether chunks of the prompt are still to be computed."""
        return self.computed < self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next new one."""
        return len(self.tokens) - self.computed

    @property
    def first_length(self) -> int:
        """Positions of the padded prompt, the fewest that its slot must have."""
        return chunks_of(self.prompt_length) * CHUNK

    @property
    def final_length(self) -> int:
        """Positions of its slot at the longest answer. The last token is not computed any more."""
        longest = self.prompt_length + self.request.max_new_tokens - 1
        return max(longest, self.first_length)

    def restart(self) -> None:
        """Forget what was computed, not what was answered."""
        self.computed = self.capacity = 0
        if not self.new_tokens:
            self.cached_tokens = 0  # they are counted anew
