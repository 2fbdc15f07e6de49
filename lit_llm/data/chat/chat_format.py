"""ChatFormat: conversations as token ids, the same in training, chat, evaluation and on servers.

A prompt is the whole conversation rendered with the generation prompt and encoded at once, as by
transformers' ``apply_chat_template(..., add_generation_prompt=True)``. In training, each answer has
such a prompt as its context. Its target is the text that the template then renders for the answer.
Some templates render earlier turns differently later (Qwen3 and R1 drop earlier thoughts). With
these, the contexts of the answers are not prefixes of one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lit_llm.data.chat.answers import AnswerFinder, no_answer
from lit_llm.data.chat.messages import (
    COMMON_WORDS,
    CONTENT_KEYS,
    REASONING,
    Turns,
    called,
    check_characters,
    read_turns,
    split_thoughts,
    text_of,
    thoughts_of,
    with_name,
    with_reasoning,
    without_nulls,
)
from lit_llm.data.chat.part_weights import weighted_spans
from lit_llm.data.chat.rendered import RenderedEncoder
from lit_llm.data.chat.template import RESERVED, ChatTemplate, Message, plain, unmarked
from lit_llm.data.chat.template_probe import PROBE, TemplateProbe, with_probe
from lit_llm.data.trees import TokenPath
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

Arguments = Mapping[str, Any]
_NONE: Arguments = {}
TOOL_USE = "tool_use"  # transformers uses the template of this name for messages with tools


@dataclass(frozen=True)
class Target:
    """One answer to learn.

    Attributes:
        turn: index of its message, from 0.
        context: ids of the prompt that a server would send for it.
        answer: ids of the answer after the context, including the token that ends the turn.
        weights: for each id of ``answer``, its weight in the loss; 0 is not learnt.
    """

    turn: int
    context: list[int]
    answer: list[int]
    weights: list[float]


class EncodedConversation(NamedTuple):
    """A conversation as the texts from which its answers are learnt.

    Attributes:
        paths: the whole conversation, or its last answer with its context; then each earlier answer
            whose context is not a beginning of this text, with its context.
        answers: number of answers that may be learnt.
        left_out: number of these answers that are not learnt, because the template renders them
            without its generation prompt.
    """

    paths: list[TokenPath]
    answers: int
    left_out: int


class ChatFormat:
    """A tokenizer with its chat template.

    Every method takes ``arguments``: further variables of the template, by name. ``tools`` is a
    list of JSON schemas. The others are switches of the template, such as ``enable_thinking``.

    Args:
        tokenizer: encodes the text; its special tokens are those of the template.
        template: Jinja source. None: the tokenizer's own template. Messages with ``tools`` are then
            rendered with its template named "tool_use" if it has one, as in transformers'
            get_chat_template.

    Attributes:
        stop_ids: tokens that end an answer: the tokenizer's, and the control tokens that the
            template writes after an answer and after a tool call (of both templates if there is
            "tool_use").

    Raises:
        UserError: there is no template, or it is not valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        source = template if template is not None else tokenizer.chat_template
        if source is None and tokenizer.named_templates:
            raise UserError(
                "the tokenizer has no default chat template: choose one of "
                f"{', '.join(tokenizer.named_templates)} with data.chat_template"
            )
        if source is None:
            raise UserError(
                "the tokenizer has no chat template: give one, or use a model trained for chat"
            )
        self.tokenizer, self.template = tokenizer, source
        self._with_tools: ChatFormat | None = None
        if template is None and TOOL_USE in tokenizer.named_templates:
            self._with_tools = ChatFormat(tokenizer, tokenizer.named_templates[TOOL_USE])
        names = {key: name for key, name in tokenizer.special_names.items() if name is not None}
        self.jinja = ChatTemplate(source, names, tokenizer.control_tokens)
        self.encoder = RenderedEncoder(tokenizer)
        self._probe = TemplateProbe(self.jinja)
        self.jinja.always_opened = self._probe.always_opened or ""
        self._finder = AnswerFinder(self.jinja, self._probe)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments: a compiled template cannot be pickled."""
        chosen = None if self._with_tools is not None else self.template
        return type(self), (self.tokenizer, chosen)

    def _for(self, arguments: Arguments) -> ChatFormat:
        """The format whose template renders messages with these arguments."""
        if self._with_tools is None or arguments.get("tools") is None:
            return self
        return self._with_tools

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool = False,
        arguments: Arguments = _NONE,
    ) -> str:
        """Render the conversation as text. Raises UserError with the template's own message."""
        return plain(self.marked(messages, add_generation_prompt, arguments))

    def marked(
        self,
        messages: list[Message],
        add_generation_prompt: bool = False,
        arguments: Arguments = _NONE,
    ) -> str:
        """`render` with a mark in every control token that comes from a message's text.

        `RenderedEncoder` takes this form.
        """
        given = [with_reasoning(without_nulls(message)) for message in messages]
        chosen = self._for(arguments)
        text = chosen.jinja.render(chosen._fit(given), add_generation_prompt, arguments)
        return unmarked(text)[0]

    def prompt_ids(self, messages: list[Message], arguments: Arguments = _NONE) -> list[int]:
        """Token ids of the conversation so far, followed by the generation prompt.

        Arguments of tool calls that are not JSON stay the text that they are (`read_turns`).

        Raises:
            UserError: the messages are not a conversation, or the template refuses them or drops
                one.
        """
        chosen = self._for(arguments)
        turns = chosen._read(messages, arguments, as_written=True)
        text = chosen._prompt(turns.messages, arguments)
        chosen._check_prompt(turns.messages, arguments, text)
        return self.encoder.ids(text)

    def encode(
        self, messages: list[Message], arguments: Arguments = _NONE
    ) -> tuple[list[int], list[bool]]:
        """Token ids and assistant mask (True for learnt tokens) of the first path of `paths`."""
        first = self.encode_conversation(messages, arguments).paths[0]
        return first.ids.tolist(), first.learnt.tolist()

    def encode_conversation(
        self, messages: list[Message], arguments: Arguments = _NONE
    ) -> EncodedConversation:
        """Encode the conversation so that every answer is learnt in the context of a server.

        The first path is the whole rendered conversation if the last target is a part of it.
        Otherwise it is the last target with its context. Earlier targets are learnt in this path if
        it begins with their context and answer, else in a path of their own.

        Raises:
            UserError: see `targets`.
        """
        chosen = self._for(arguments)
        turns = chosen._read(messages, arguments)
        wanted = _answers(turns)
        targets = chosen._targets(turns, arguments)
        ids = self.encoder.ids(unmarked(chosen.jinja.render(turns.messages, False, arguments))[0])
        if targets:
            last = targets[-1].context + targets[-1].answer
            ids = ids if ids[: len(last)] == last else last
        weights = [0.0] * len(ids)
        others = []
        for target in targets:
            begin, end = len(target.context), len(target.context) + len(target.answer)
            own = target.context + target.answer
            if ids[:end] == own:
                weights[begin:end] = target.weights
            else:
                others.append((own, [0.0] * begin + target.weights))
        paths = [TokenPath.weighted(*path) for path in [(ids, weights), *others]]
        return EncodedConversation(paths, len(wanted), len(wanted) - len(targets))

    def targets(self, messages: list[Message], arguments: Arguments = _NONE) -> list[Target]:
        """Every answer that may be learnt, with the context that a server would send for it.

        Messages with ``train`` false or ``weight`` 0 are left out. An earlier answer is left out
        too if the template renders it without its generation prompt. For the last answer this is an
        error.

        Raises:
            UserError: the messages are not a conversation; the template refuses them or drops a
                part of them; it renders the last answer without the generation prompt and has no
                ``{% generation %}`` marks.
        """
        chosen = self._for(arguments)
        return chosen._targets(chosen._read(messages, arguments), arguments)

    @property
    def rendered_by(self) -> dict[str, Any]:
        """All settings that decide how messages are rendered; the key of cached encoded data."""
        with_tools = None if self._with_tools is None else self._with_tools.template
        return {"template": self.template, TOOL_USE: with_tools, "names": self.jinja.names}

    def knows_reasoning(self, arguments: Arguments = _NONE) -> bool:
        """Whether the template renders the field ``reasoning_content`` of an answer."""
        return self._for(arguments)._knows_reasoning

    @cached_property
    def _knows_reasoning(self) -> bool:
        thoughts = {key: PROBE for key in ("reasoning_content", "thinking")}
        answer = {"role": "assistant", "content": "answer", **thoughts}
        return self._probe.shows([{"role": "user", "content": "question"}, answer], _NONE)

    @property
    def turn_end(self) -> str | None:
        """The control token that ends an assistant's turn; None if the template writes none."""
        return self._probe.turn_end

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer, see the class."""
        probe = self._probe
        ends = [probe.turn_end, probe.call_end, probe.next_turn(False), probe.next_turn(True)]
        found = [self.tokenizer.control_tokens[end] for end in ends if end is not None]
        with_tools = [] if self._with_tools is None else self._with_tools.stop_ids
        return list(dict.fromkeys([*self.tokenizer.stop_ids, *found, *with_tools]))

    def _read(
        self, messages: list[Message], arguments: Arguments, as_written: bool = False
    ) -> Turns:
        """Check messages and arguments, and convert the messages to the template's form."""
        turns = read_turns(messages, as_written)
        for number, message in enumerate(turns.messages, 1):
            for key in CONTENT_KEYS:
                if message.get(key) and not self._uses(key, turns.messages, number - 1, arguments):
                    raise UserError(f"message {number}: the chat template does not use {key!r}")
        for name in arguments:
            if name != "tools" and (name in RESERVED or not self.jinja.knows(name)):
                raise UserError(f"the chat template does not take the argument {name!r}")
        check_characters(dict(arguments), "the template's arguments")
        return turns._replace(messages=self._fit(turns.messages))

    def _uses(self, key: str, messages: list[Message], place: int, arguments: Arguments) -> bool:
        """Whether the template uses this key of a message.

        Templates contain some keys with another meaning ("text" is a part of the content,
        "tool_call" a variable). These keys are tested with a probe.
        """
        if key not in COMMON_WORDS or not self.jinja.knows(key):
            return self.jinja.knows(key)
        probed = {**messages[place], key: with_probe(messages[place][key])}
        return self._probe.shows([*messages[:place], probed], arguments)

    def _fit(self, messages: list[Message]) -> list[Message]:
        return [self._probe.fit(message) for message in messages]

    def _prompt(self, messages: list[Message], arguments: Arguments) -> str:
        return unmarked(self.jinja.render(messages, True, arguments))[0]

    def _targets(self, turns: Turns, arguments: Arguments) -> list[Target]:
        if self._probe.always_opened is None:
            raise UserError(
                "the chat template ignores add_generation_prompt: it begins another turn behind "
                "every answer, and the model would learn to do so; put "
                "{% if add_generation_prompt %} ... {% endif %} around that part"
            )
        wanted = _answers(turns)
        found = []
        for turn in wanted:
            # Render the conversation up to this answer, and the prompt that a server would send for
            # it.
            upto = turns.messages[: turn + 1]
            prompt = self._prompt(upto[:-1], arguments)
            text, spans = self._finder.find(upto, arguments, prompt)
            if not spans and turn != wanted[-1]:
                continue
            if not spans:
                raise no_answer(turn + 1, upto[-1], prompt)
            begin, end = spans[0][0], spans[-1][1]
            self._check_answer(upto, arguments, text[begin:end])
            if turn == wanted[-1]:
                self._check_prompt(upto[:-1], arguments, prompt)
            # Encode context and answer as a server does, and mask the answer's tokens by their
            # characters.
            context = self.encoder.ids(text[:begin])
            ids, offsets = self.encoder.continued(context, text, begin)
            count = sum(start < end for start, _ in offsets)
            own = weighted_spans(text, spans, turns.messages[turn], turns.parts[turn])
            weights = [
                turns.weights[turn]
                * min((weight for a, b, weight in own if a < last and first < b), default=1.0)
                * any(a <= first < b for a, b in spans)
                for first, last in offsets[:count]
            ]
            found.append(Target(turn, context, ids[:count], weights))
            self._check_end(found[-1])
        return found

    def _check_end(self, target: Target) -> None:
        """Raise UserError for an answer without an end where other answers have one.

        DeepSeek-R1's template of the distilled models ends two tool calls, but not a single one.
        With ``{% generation %}`` marks, the marks say what is learnt.
        """
        if self._probe.turn_end is None or self.jinja.marks_answers:
            return
        if target.answer[-1] not in self.stop_ids:
            raise UserError(
                f"the chat template writes {self._probe.turn_end} after other answers, but no "
                f"token that ends the one in message {target.turn + 1}: the model would learn not "
                "to stop there; write the token in the template"
            )

    def _check_prompt(self, messages: list[Message], arguments: Arguments, text: str) -> None:
        """Raise UserError if the template drops the tools or a message of a role but assistant."""
        if arguments.get("tools") and not self._probe.takes_tools:
            raise UserError("the chat template leaves out the tools: it takes no 'tools'")
        for number, message in enumerate(messages, 1):
            role, words = message["role"], self.jinja.defused(text_of(message)).strip()
            if role == "assistant" or not words:
                continue
            probed = [{**m, "content": PROBE} if m is message else m for m in messages]
            if self._probe.leaves_out(role) or not (
                words in text or self._probe.shows(probed, arguments)
            ):
                raise UserError(
                    f"the chat template leaves out message {number}: its role is {role!r}"
                )

    def _check_answer(self, messages: list[Message], arguments: Arguments, answer: str) -> None:
        """Raise UserError if the template drops a part of the answer in the last message."""
        last = messages[-1]
        thoughts = {key: PROBE for key in REASONING if key in last}
        # Without the field, they are a block at the head of the content.
        thoughts = thoughts or {"content": f"<think>\n{PROBE}\n</think>\n\nwords"}
        calls = [with_name(call, PROBE) for call in last.get("tool_calls", [])]
        parts = (
            ("content", split_thoughts(last)[1], {"content": PROBE}),
            ("reasoning_content", thoughts_of(last), thoughts),
            ("tool_calls", "".join(f["name"] for f in called(last)), {"tool_calls": calls}),
        )
        there = [part for part in parts if part[1].strip()]
        for key, words, changed in there:
            words = self.jinja.defused(words).strip()
            # With several parts, a few words of one may occur in another by chance. The template is
            # then tested with a probe.
            told = words in answer and (len(words) >= 16 or len(there) == 1)
            if told or (key == "reasoning_content" and answer.startswith(words)):
                continue
            if not self._probe.shows([*messages[:-1], {**last, **changed}], arguments):
                raise UserError(
                    f"the chat template leaves out the {key!r} of message {len(messages)}, an "
                    f"answer"
                )


def _answers(turns: Turns) -> list[int]:
    """Indices of the messages that may be learnt.

    An assistant's message that begins the conversation is context: no server is asked with nothing.
    """
    return [
        turn
        for turn, (message, weight) in enumerate(zip(turns.messages, turns.weights, strict=True))
        if turn and message["role"] == "assistant" and weight
    ]
