"""Conversation: a chat's history, kept within the model's context, and its streamed answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.template import Message
from lit_llm.errors import UserError
from lit_llm.models.generation.generate import PromptCache, stream
from lit_llm.models.generation.sampling import Sampling
from lit_llm.models.generation.text_stream import TextStream
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer


class Conversation:
    """A chat with a model.

    Args:
        model, tokenizer: as `load_model` returns them.
        system: text of the system message. None: the chat template's behaviour without one.
        stop: strings that end an answer. The answer ends before the string.
        max_new_tokens: longest answer in tokens; shorter if the context ends.
        sampling, seed: see `generate`. Each answer has its own random stream.

    Attributes:
        history: user and assistant messages in turn.
        dropped: number of turns (a user's message and its answer) that were left out so far because
            the context was full.

    Raises:
        UserError: the tokenizer has no chat template, or a setting is out of range.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        stop: Sequence[str] = (),
        max_new_tokens: int = 512,
        sampling: Sampling = Sampling(temperature=0.7, top_p=0.95),  # noqa: B008 -- frozen
        seed: int = 0,
    ):
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}: must be >= 1")
        TextStream(tokenizer, stop)  # refuses an empty string
        self.model, self.tokenizer, self.format = model, tokenizer, ChatFormat(tokenizer)
        self.stop, self.max_new_tokens = stop, max_new_tokens
        self.sampling, self.seed = sampling, seed
        self.history: list[Message] = []
        self.dropped = 0
        self._system: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}]
        )
        self._cache = PromptCache()
        self._answers = 0

    def take(self, tokenizer: Tokenizer) -> None:
        """Go on after the weights were changed, with the tokenizer that belongs to them.

        The turns stay.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        self.format, self.tokenizer = ChatFormat(tokenizer), tokenizer
        self._cache = PromptCache()  # its keys and values are of the weights before

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.history, self.dropped = [], 0

    def ask(self, text: str) -> Generator[str, None, None]:
        """Stream the answer to ``text`` in pieces.

        If the caller closes the iterator, or an exception such as KeyboardInterrupt occurs inside
        it, the answer ends there. The history keeps the part that was generated.

        Raises:
            UserError: at the call: the message does not fit the context, or the template refuses
                it.
        """
        question: Message = {"role": "user", "content": text}
        ids = self._fit(question)
        tokens = stream(
            self.model,
            ids,
            min(self.max_new_tokens, self.model.config.max_seq_len - len(ids)),
            self.sampling,
            seed=self.seed + self._answers,
            stop_ids=self.format.stop_ids,
            cache=self._cache,
        )
        return self._answer(question, tokens)

    def _answer(
        self, question: Message, tokens: Generator[int, None, None]
    ) -> Generator[str, None, None]:
        written = TextStream(self.tokenizer, self.stop)
        pieces: list[str] = []
        try:
            for token in tokens:
                if piece := written.push(token):
                    pieces.append(piece)
                    yield piece
                if written.stopped:
                    break
            if piece := written.flush():
                pieces.append(piece)
                yield piece
        finally:
            tokens.close()
            self._answers += 1
            self.history += [question, {"role": "assistant", "content": "".join(pieces)}]

    def _fit(self, question: Message) -> list[int]:
        """Encode as much of the history as leaves room for an answer.

        Older turns are dropped for good.
        """
        size = self.model.config.max_seq_len
        room = min(self.max_new_tokens, size // 2)
        kept = self.history
        ids = self.format.prompt_ids([*self._system, *kept, question])
        while kept and len(ids) + room > size:
            kept = kept[2:]
            ids = self.format.prompt_ids([*self._system, *kept, question])
        if len(ids) >= size:
            with_system = " with the system message" if self._system else ""
            raise UserError(
                f"the message takes {len(ids)} tokens{with_system}; the model's context has {size}"
            )
        self.dropped += (len(self.history) - len(kept)) // 2
        self.history = kept
        return ids
