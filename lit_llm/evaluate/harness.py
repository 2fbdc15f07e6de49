"""HarnessLM: a Transformer in memory as an lm-eval model.

Its scores equal those of lm-eval's ``hf`` backend. Text is tokenized as transformers would with the
exported directory: the rule in tokenizer.json adds its special tokens, and control tokens in a
prompt's text count as control tokens. A prompt from the chat template is tokenized as in chat,
training and servers: nothing is added, and a control token in a task's text stays plain text.

Ranks of torch.distributed share the work inside this class, and each rank gets all results. lm-eval
sees a single process. Its own distribution has three problems. It fails if a task has fewer
documents than ranks. It pads requests instead of forward passes, so ranks with sharded weights wait
for each other forever. And it sums documents in an order that depends on the ranks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.evaluate.decode import Decoding
from lit_llm.evaluate.engine_answers import Prompt, engine_answers
from lit_llm.evaluate.padded_answers import padded_answers
from lit_llm.evaluate.questions import evenly_spaced
from lit_llm.evaluate.reasoning import Reasoning
from lit_llm.evaluate.scoring.budget import batch_tokens
from lit_llm.evaluate.scoring.kept import KeptParts
from lit_llm.evaluate.scoring.plain import LogitsModel
from lit_llm.evaluate.scoring.score import Score, score
from lit_llm.evaluate.scoring.trees import Request
from lit_llm.models.hub.generation_config import eos_ids
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.parallel.sharded import is_divided
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# A noncharacter, which cannot occur in a text, and a space that shows whether the template strips
# messages.
_FINAL_MARK = "\ufdd3 "
_PLAIN_TOKENS = 2048  # of a batch of a model whose memory nobody knows
_HEAD = 16  # leading characters that identify a rendered prompt


class HarnessLM(TemplateLM):
    """A Transformer as the model of ``lm_eval.evaluate(HarnessLM(model, tokenizer), ...)``.

    Nothing is exported, moved or compiled. Log-likelihoods are computed in rows of prefix trees
    (`lit_llm.evaluate.scoring`), answers by the engine that serves (`lit_llm.models.engine`).

    Args:
        model: on any device. It runs eagerly, in eval mode and without gradients. Its train and
            eval modes are restored. A `LogitsModel` has neither trees nor the engine: it is asked
            for the logits of padded rows.
        tokenizer: must have a bos or an eos token, with which a text without context begins.
        batch_size: most answers that are generated at the same time. None: 64.
        max_batch_tokens: most tokens in a forward pass that scores. None: what half of the free
            memory is enough for.
        check_batching: number of requests of each task that are scored alone, too; see `told`.
        pack: whether the model may be changed for speed, see `pack_linears`. It cannot be trained
            or saved any more then.
        kept: finished requests of an evaluation that may be killed; None: they are not kept.
        reasoning: how the model marks reasoning before its answers, see `engine_answers`. None:
            it has none.
        template_arguments: further variables of the chat template, such as ``enable_thinking``.
        progress: show a progress bar on stderr of the first rank.

    Attributes:
        endings: task -> number of answers "asked" for, and of those with each of `ENDINGS`.

    Raises:
        UserError: the tokenizer has neither token. Later, from requests: a continuation longer than
            the context, more new tokens than the context holds, or an unknown generation setting.
    """

    max_gen_toks = 256
    """New tokens for a task that sets no limit."""

    def __init__(
        self,
        model: Transformer | LogitsModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        check_batching: int = 0,
        pack: bool = False,
        kept: KeptParts | None = None,
        reasoning: Reasoning | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        progress: bool = False,
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer  # type: ignore[assignment]
        self.batch_size, self.check_batching, self.pack = batch_size, check_batching, pack
        self.kept, self.reasoning = kept, reasoning
        self.template_arguments = template_arguments or {}
        self.endings: dict[str, Counter[str]] = {}
        if max_batch_tokens is None:
            max_batch_tokens = (
                _PLAIN_TOKENS if isinstance(model, LogitsModel) else batch_tokens(model)
            )
        self.max_batch_tokens = max_batch_tokens
        if pack and not is_divided(model):
            pack_linears(model)
        # Lm-eval's progress bars are silenced later. This one is not.
        self._bar_stream = sys.stderr if progress else None
        begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if begin is None:
            raise UserError(
                "the tokenizer has neither a bos nor an eos token, so no text can begin: name one"
            )
        self._prefix, self._prefix_text = begin, tokenizer.decode([begin])
        self._rendered_heads: set[str] = set()
        self._asked = self._cut = self._checked = self._without_engine = 0  # see `told`
        self._difference = 0.0

    def told(self) -> list[str]:
        """What to say of the requests since the last call: cut prompts, and what was checked."""
        lines = []
        if self._cut:
            lines.append(
                f"{self._cut:,} of {self._asked:,} prompts are longer than the model's context of "
                f"{self.max_length:,} tokens leaves room for; their first tokens were left out"
            )
        if self._without_engine:
            lines.append(
                f"{self._without_engine:,} answers were generated in padded batches, because the "
                "engine takes neither sharded weights nor mixed precision nor other models"
            )
        if self._checked:
            lines.append(
                f"{self._checked:,} requests scored alone too: the largest difference is "
                f"{self._difference:.2g} nats"
            )
        self._asked = self._cut = self._checked = self._without_engine = 0
        self._difference = 0.0
        return lines

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's eos token, or bos if there is none."""
        return self._prefix if self.tokenizer.eos_id is None else self.tokenizer.eos_id

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an answer: those of tokenizer and model.

        If prompts come from the chat template, the token that ends a turn is added.
        """
        chatting = bool(self._rendered_heads)
        ids = {self.eot_token_id, *(self._chat if chatting else self.tokenizer).stop_ids}
        of_config = self.model.config.eos_token_id
        if of_model := eos_ids(self.model.generation_config):
            ids.update(of_model)
        elif of_config is not None:
            ids.add(of_config)
        return ids

    @property
    def _generation_config(self) -> dict[str, Any]:
        return {**self.tokenizer.generation_config, **self.model.generation_config}

    @property
    def prefix_token_id(self) -> int:
        """First token of a text without context: bos, or eos if there is none."""
        return self._prefix

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return self.model.config.max_seq_len

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, which lm-eval uses as a cache key."""
        return self.tokenizer.fingerprint()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokenize ``string``.

        With ``add_special_tokens=None``, special tokens are added unless the text begins with the
        prefix token or is a chat prompt.
        """
        if string[:_HEAD] in self._rendered_heads:
            return self._chat.encoder.ids(string)
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix_text)
        return self.tokenizer.backend.encode(string, add_special_tokens=add_special_tokens).ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render the conversation as text.

        Without the generation prompt, the last message stays open to be continued. If the template
        refuses a system message, the text is rendered without it.

        Raises:
            UserError: no chat template, or it refuses the messages even without a system message.
        """
        try:
            text = self._render(chat_history, add_generation_prompt)
        except UserError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            text = self._render(rest, add_generation_prompt)
        # Lm-eval moves white space from the end of a prompt to its answer.
        if head := text[:_HEAD].rstrip():
            self._rendered_heads.add(head)
        return text

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """Render messages as text with marked control tokens (`RenderedEncoder`).

        A text without control tokens equals transformers' text.
        """
        arguments = self.template_arguments
        if add_generation_prompt:
            return self._chat.marked(messages, True, arguments)
        *before, last = messages
        final = {**last, "content": last["content"] + _FINAL_MARK}
        text = self._chat.marked([*before, final], arguments=arguments)
        at = text.find(_FINAL_MARK.strip())
        if at < 0:
            raise UserError("the chat template leaves out the message that is to be continued")
        return text[:at] if text[at:].startswith(_FINAL_MARK) else text[:at].rstrip()

    @cached_property
    def _chat(self) -> ChatFormat:
        return ChatFormat(self.tokenizer)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood in nats of whole texts, in context windows that do not overlap."""
        windows = []
        owners = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                self.tok_encode(text),
                self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Score]:
        """Score each continuation after its context.

        Inputs that are too long lose tokens on the left.
        """
        self._refuse_reasoning()
        asked: dict[int, Request] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens exceeds the model's context of "
                    f"{self.max_length}"
                )
            if continuation:
                whole = (context or [self.prefix_token_id]) + continuation
                self._asked += 1
                self._cut += len(whole) > self.max_length + 1
                asked[number] = Request(whole[-(self.max_length + 1) :], len(continuation))
        wanted = list(asked.values())
        found = score(self.model, wanted, self.max_batch_tokens, self._bar_stream, self.kept)
        self._check(wanted, found)
        # The score of an empty continuation is that of a certain one.
        scores = dict(zip(asked, found, strict=True))
        return [scores.get(number, Score(0.0, True)) for number in range(len(requests))]

    def _refuse_reasoning(self) -> None:
        """Choices are scored right behind the prompt, where a reasoning model would reason."""
        if self.reasoning is None or not self._rendered_heads:
            return
        if not self.reasoning.is_off(self._render([{"role": "user", "content": "?"}], True)):
            raise UserError(
                "the task scores choices behind a prompt with reasoning: turn reasoning off "
                "(--chat_template_kwargs '{\"enable_thinking\": false}', if the template knows it)"
            )

    def _check(self, requests: list[Request], found: list[Score]) -> None:
        """Score some requests alone, and note the largest difference."""
        for place in evenly_spaced(range(len(requests)), self.check_batching):
            (alone,) = score(self.model, [requests[place]], len(requests[place].ids))
            self._checked += 1
            self._difference = max(self._difference, abs(alone.logprob - found[place].logprob))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate the text after each context, up to the first stop string or `stop_ids`.

        Prompts that are too long lose tokens on the left. Settings that a request does not have
        come from the model's generation_config, as in transformers' ``generate``. The seed of a
        request follows from its task, document and place in the document, and repeated samples are
        counted. So an answer depends neither on the other requests nor on ``--limit``.
        """
        prompts = []
        repeats: Counter[int] = Counter()
        for request in requests:
            context, arguments = request.args[:2]
            how = Decoding.from_request(arguments, self.max_gen_toks, self._generation_config)
            if self.reasoning is not None:
                most = sum(self.reasoning.limits(how.max_new_tokens))
                how = dataclasses.replace(how, max_new_tokens=most)
            room = self.max_length - how.max_new_tokens
            if room < 1:
                raise UserError(
                    f"the task asks for {how.max_new_tokens} new tokens, the model's whole context "
                    f"is {self.max_length}: lower max_gen_toks in the task's generation_kwargs"
                )
            whole = self.tok_encode(context)
            self._asked += 1
            self._cut += len(whole) > room
            seed = _seed(request)
            ids = whole[-room:] or [self.prefix_token_id]
            prompts.append(Prompt(ids, how, seed, repeats[seed]))
            repeats[seed] += 1
        if self._engine_can():
            assert isinstance(self.model, Transformer)
            answers = engine_answers(
                self.model, self.tokenizer, prompts, self.stop_ids,
                pack=self.pack, max_running=self.batch_size, bar_stream=self._bar_stream,
                kept=self.kept, reasoning=self.reasoning,
            )  # fmt: skip
            for request, answered in zip(requests, answers, strict=True):
                ends = self.endings.setdefault(str(request.task_name), Counter())
                ends.update(["asked"] if answered.ending is None else ["asked", answered.ending])
            return [answered.text for answered in answers]
        if self.reasoning is not None:
            raise UserError(
                "reasoning is separated by the engine only, which takes neither sharded weights "
                "nor mixed precision nor other models"
            )
        self._without_engine += len(prompts)
        size = self.batch_size or max(1, self.max_batch_tokens // self.max_length)
        return padded_answers(
            self.model, self.tokenizer, prompts, self.stop_ids, size, self._bar_stream
        )

    def _engine_can(self) -> bool:
        """Whether the engine can run here: it computes in the weights' dtype, with all weights."""
        return (
            not isinstance(self.model, LogitsModel)
            and not is_divided(self.model)
            and not torch.is_autocast_enabled(self.device.type)
        )


def _seed(request: Instance) -> int:
    place = repr((request.task_name, request.doc_id, request.idx))
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little")
