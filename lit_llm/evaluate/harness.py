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

import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.evaluate.decode import Decoding, decode
from lit_llm.evaluate.measuring import measuring
from lit_llm.models.hub.generation_config import eos_ids
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Score = tuple[float, bool]
# A noncharacter, which cannot occur in a text, and a space that shows whether the template strips
# messages.
_FINAL_MARK = "\ufdd3 "
_HEAD = 16  # leading characters that identify a rendered prompt


class HarnessLM(TemplateLM):
    """A Transformer as the model of ``lm_eval.evaluate(HarnessLM(model, tokenizer), ...)``.

    Nothing is exported, moved or compiled.

    Args:
        model: on any device. It runs eagerly, in eval mode and without gradients. Its train and
            eval modes are restored.
        tokenizer: must have a bos or an eos token, with which a text without context begins.
        batch_size: most requests per batch. None: as many as ``max_batch_tokens`` allows.
        max_batch_tokens: most tokens per batch, including padding. A longer request runs alone.
        progress: show a progress bar on stderr of the first rank.

    Raises:
        UserError: the tokenizer has neither token. Later, from requests: a continuation longer than
            the context, more new tokens than the context holds, or an unknown generation setting.
    """

    max_gen_toks = 256
    """New tokens for a task that sets no limit."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        batch_size: int | None = None,
        max_batch_tokens: int = 4096,
        progress: bool = False,
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer  # type: ignore[assignment]
        self.batch_size, self.max_batch_tokens = batch_size, max_batch_tokens
        # Lm-eval's progress bars are silenced later. This one is not.
        self._bar_stream = sys.stderr if progress else None
        begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if begin is None:
            raise UserError(
                "the tokenizer has neither a bos nor an eos token, so no text can begin: name one"
            )
        self._prefix, self._prefix_text = begin, tokenizer.decode([begin])
        self._rendered_heads: set[str] = set()
        self._asked = self._cut = 0  # see `told_of_cut`

    def told_of_cut(self) -> str | None:
        """What to say of prompts since the last call that lost tokens; None if none did."""
        asked, cut = self._asked, self._cut
        self._asked = self._cut = 0
        if not cut:
            return None
        return (
            f"{cut:,} of {asked:,} prompts are longer than the model's context of "
            f"{self.max_length:,} tokens leaves room for; their first tokens were left out"
        )

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
        return self.model.embed.weight.device

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
            text = _render(self._chat, chat_history, add_generation_prompt)
        except UserError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            text = _render(self._chat, rest, add_generation_prompt)
        # Lm-eval moves white space from the end of a prompt to its answer.
        if head := text[:_HEAD].rstrip():
            self._rendered_heads.add(head)
        return text

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

        A score is the log-likelihood in nats, and whether greedy decoding gives the continuation.
        Inputs that are too long lose tokens on the left. Requests with the same input share a row,
        such as the one-token choices of a question.
        """
        answers: list[Score] = [(0.0, True)] * len(requests)  # the score of an empty continuation
        numbers: dict[tuple[int, ...], list[int]] = {}
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
                numbers.setdefault(tuple(whole[-(self.max_length + 1) : -1]), []).append(number)

        def score(batch: list[tuple[int, ...]]) -> list[list[Score]]:
            return self._score(batch, [[requests[n][2] for n in numbers[row]] for row in batch])

        batches = self._batches(list(numbers), len)
        for batch, scores in zip(
            batches,
            self._run_batches(batches, score, "scoring", list(map(len, batches))),
            strict=True,
        ):
            for row, row_scores in zip(batch, scores, strict=True):
                for number, one in zip(numbers[row], row_scores, strict=True):
                    answers[number] = one
        return answers

    def _score(
        self, rows: list[tuple[int, ...]], targets: list[list[list[int]]]
    ) -> list[list[Score]]:
        """Scores of the targets that end one position after each row.

        Only the positions of the targets pass through the head.
        """
        # Pad the rows, and collect for each target its positions in the flattened batch.
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        places: list[int] = []
        labels: list[int] = []
        for number, (row, continuations) in enumerate(zip(rows, targets, strict=True)):
            # Padding is on the right, so no causal position attends to it.
            ids[number, : len(row)] = torch.tensor(row)
            end = number * longest + len(row)
            for continuation in continuations:
                places += range(end - len(continuation), end)
                labels += continuation
        with measuring(self.model):
            x_NC = self.model.hidden_states(ids.to(self.device)).flatten(0, 1)
            logits_NV = self.model.logits(x_NC[torch.tensor(places, device=self.device)]).float()
            labels_N = torch.tensor(labels, device=self.device)
            losses = F.cross_entropy(logits_NV, labels_N, reduction="none").cpu().double()
            greedy = (logits_NV.argmax(-1) == labels_N).cpu()
        lengths = [len(continuation) for continuations in targets for continuation in continuations]
        flat = iter(
            [
                (-float(loss.sum()), bool(hit.all()))
                for loss, hit in zip(losses.split(lengths), greedy.split(lengths), strict=True)
            ]
        )
        return [[next(flat) for _ in continuations] for continuations in targets]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate the text after each context, up to the first stop string or `stop_ids`.

        Prompts that are too long lose tokens on the left. Settings that a request does not have
        come from the model's generation_config, as in transformers' ``generate``. The position of a
        request in the list is its seed. Repeated samples therefore differ, and a second call gives
        the same texts.
        """
        groups: dict[Decoding, list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            context, arguments = request.args[:2]
            how = Decoding.from_request(arguments, self.max_gen_toks, self._generation_config)
            room = self.max_length - how.max_new_tokens
            if room < 1:
                raise UserError(
                    f"the task asks for {how.max_new_tokens} new tokens, the model's whole context "
                    f"is {self.max_length}: lower max_gen_toks in the task's generation_kwargs"
                )
            whole = self.tok_encode(context)
            self._asked += 1
            self._cut += len(whole) > room
            prompt = whole[-room:] or [self.prefix_token_id]
            groups.setdefault(how, []).append((number, prompt))
        ends = self.stop_ids
        jobs: list[tuple[Decoding, list[tuple[int, list[int]]]]] = []
        for how, members in groups.items():

            def size(member: tuple[int, list[int]], new: int = how.max_new_tokens) -> int:
                return len(member[1]) + new

            jobs += [(how, batch) for batch in self._batches(members, size)]

        def answer(job: tuple[Decoding, list[tuple[int, list[int]]]]) -> list[str]:
            how, members = job
            seeds, prompts = [number for number, _ in members], [prompt for _, prompt in members]
            with measuring(self.model):
                return decode(self.model, self.tokenizer, prompts, how, seeds=seeds, stop_ids=ends)

        answers = [""] * len(requests)
        sizes = [len(members) for _, members in jobs]
        for (_, members), texts in zip(
            jobs, self._run_batches(jobs, answer, "generating", sizes), strict=True
        ):
            for (number, _), text in zip(members, texts, strict=True):
                answers[number] = text
        return answers

    def _batches(self, items: list[Item], length: Callable[[Item], int]) -> list[list[Item]]:
        """Split items into batches, the longest first.

        Rows of a batch then have similar lengths, and a batch that exceeds the memory fails at
        once.
        """
        batches: list[list[Item]] = []
        room = 0
        for item in sorted(items, key=length, reverse=True):
            if room == 0:
                batches.append([])
                room = max(1, self.max_batch_tokens // max(1, length(item)))
                room = room if self.batch_size is None else min(room, self.batch_size)
            batches[-1].append(item)
            room -= 1
        return batches

    def _run_batches(
        self, batches: list[Item], work: Callable[[Item], Answer], what: str, sizes: list[int]
    ) -> list[Answer]:
        """Compute the answer to every batch, on every rank; each turn gives each rank one batch.

        In the last turn, a rank without a batch repeats another one: all ranks must make the same
        number of forward passes.
        """
        shared = dist.is_available() and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        done: dict[int, Answer] = {}
        bar = tqdm(total=sum(sizes), desc=what, unit="request", file=self._bar_stream,
                   disable=self._bar_stream is None or rank > 0)  # fmt: skip
        with bar:
            for first in range(0, len(batches), ranks):
                number = first + rank
                answer = work(batches[min(number, len(batches) - 1)])
                if number < len(batches):
                    done[number] = answer
                bar.update(sum(sizes[first : first + ranks]))
        if shared:
            parts: list[Any] = [None] * ranks
            dist.all_gather_object(parts, done)
            for part in parts:
                done |= part
        return [done[number] for number in range(len(batches))]


def _render(chat: ChatFormat, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Render messages as text with marked control tokens (`RenderedEncoder`).

    A text without control tokens equals transformers' text.
    """
    if add_generation_prompt:
        return chat.marked(messages, add_generation_prompt=True)
    *before, last = messages
    text = chat.marked([*before, {**last, "content": last["content"] + _FINAL_MARK}])
    at = text.find(_FINAL_MARK.strip())
    if at < 0:
        raise UserError("the chat template leaves out the message that is to be continued")
    return text[:at] if text[at:].startswith(_FINAL_MARK) else text[:at].rstrip()
