"""Conversations as token ids: the model's own Jinja chat template, and which tokens the assistant speaks.

A message is {"role": "system" | "user" | "assistant", "content": text}. The template is rendered as transformers does
(same names, same extensions), so that what is trained is what serving engines send.

Two things differ on purpose. A message that spells a control token cannot become one: ``<|im_end|>`` in a user's text
is encoded as those characters. And the text is encoded in pieces, cut where the assistant begins and ends: at inference
the prompt is encoded without its answer, so no token may straddle that border in training either.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cached_property
from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

Message = dict[str, str]
ROLES = ("system", "user", "assistant")

# Unicode noncharacters, which no text may contain: a cut in a spelled control token, and the marks of {% generation %}.
_CUT, _BEGIN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_OWN_MARKS = re.compile(f"[{_CUT}{_BEGIN}{_END}]")


class ChatFormat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: encodes; its special tokens are the template's.
        template: Jinja source. None: the tokenizer's own.

    Attributes:
        stop_ids: tokens that end an answer: the end of text, and the control token the template puts after an answer.

    Raises:
        UserError: there is no template, or it is not valid Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        source = template if template is not None else tokenizer.chat_template
        if source is None:
            raise UserError(
                "the tokenizer has no chat template: give one, or use a model trained for chat"
            )
        self.tokenizer, self.template = tokenizer, source
        self._compiled = _compile(source)
        self._marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        spelled = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made of the same arguments: a compiled template cannot be pickled."""
        return type(self), (self.tokenizer, self.template)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text. Raises UserError with the template's own complaint."""
        return _OWN_MARKS.sub("", self._render(messages, add_generation_prompt))

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation so far, ready for the assistant's next answer.

        Earlier answers are encoded as pieces of their own, as in ``encode`` and as they were generated.
        """
        check_messages(messages)
        whole = self._render(messages, add_generation_prompt=True)
        done = ""
        ids: list[int] = []
        if not self._marks_answers:
            for text, speaks in self._segments(messages):
                if speaks or whole.startswith(done + text):
                    done += text
                    ids += self._encode(text)
        if not whole.startswith(done):
            done, ids = "", []
        return ids + self._encode(whole[len(done) :])

    def encode(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """Token ids, and True where the assistant speaks; the token that ends its turn is spoken too.

        Raises:
            UserError: the messages are not a conversation, the template refuses them, or rewrites earlier turns as the
                conversation goes on (then it needs ``{% generation %}`` around the assistant's words).
        """
        check_messages(messages)
        ids: list[int] = []
        spoken: list[bool] = []
        for text, speaks in self._segments(messages):
            piece = self._encode(text)
            ids += piece
            spoken += [speaks] * len(piece)
        return ids, spoken

    @cached_property
    def stop_ids(self) -> list[int]:
        """See the class."""
        stops = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        ids, spoken = self.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
        last = [i for i, speaks in zip(ids, spoken, strict=True) if speaks][-1]
        if self.tokenizer.is_control(last) and last not in stops:
            stops.append(last)
        return stops

    def _segments(self, messages: list[Message]) -> list[tuple[str, bool]]:
        """The rendered text in pieces, each with whether the assistant speaks it."""
        if self._marks_answers:
            parts = re.split(f"{_BEGIN}(.*?){_END}", self._render(messages, False), flags=re.DOTALL)
            return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]
        pieces: list[tuple[str, bool]] = []
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:i], add_generation_prompt=True)
            upto = self._render(messages[: i + 1], add_generation_prompt=False)
            if not prompt.startswith(done) or not upto.startswith(prompt):
                raise UserError(
                    "the chat template renders earlier turns differently later on, so the assistant's words cannot be "
                    "found; put {% generation %} ... {% endgeneration %} around them in the template"
                )
            answer, rest = self._cut_answer(upto[len(prompt) :])
            pieces += [(prompt[len(done) :], False), (answer, True)]
            done = upto[: len(upto) - len(rest)]
        whole = self._render(messages, add_generation_prompt=False)
        if not whole.startswith(done):
            raise UserError(
                "the chat template changes the end of an answer when another turn follows"
            )
        pieces.append((whole[len(done) :], False))
        return [(text, speaks) for text, speaks in pieces if text]

    def _cut_answer(self, text: str) -> tuple[str, str]:
        """(answer with the token that ends its turn, layout after it): the model stops at that token."""
        ends = list(self._control.finditer(text))
        if ends and not text[ends[-1].end() :].strip():
            return text[: ends[-1].end()], text[ends[-1].end() :]
        return text, ""

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        import jinja2

        safe = [{**message, "content": self._defused(message["content"])} for message in messages]
        names = {
            key: name for key, name in self.tokenizer.special_names.items() if name is not None
        }
        try:
            return self._compiled.render(
                messages=safe, add_generation_prompt=add_generation_prompt, **names
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the messages: {error}") from None
        except Exception as error:  # a template is code: it can raise anything
            raise UserError(f"the chat template fails ({type(error).__name__}: {error})") from None

    def _defused(self, content: str) -> str:
        """``content`` with a cut inside every spelled control token, so that it is encoded as characters."""
        content = _OWN_MARKS.sub("", content)
        return self._control.sub(lambda match: match[0][:1] + _CUT + match[0][1:], content)

    def _encode(self, text: str) -> list[int]:
        text = text.replace(_BEGIN, "").replace(_END, "")
        return [
            i
            for piece in text.split(_CUT)
            for i in self.tokenizer.encode(piece, allow_special=True)
        ]


def check_messages(messages: Any) -> None:
    """Raise a UserError that says what is wrong unless ``messages`` is a conversation.

    A system message may come first; then user and assistant take turns, the user beginning.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError("'messages' must be a list of {role, content} and not empty")
    expected = "user"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise UserError(f"message {number} must be an object with 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"message {number} has role {role!r}; roles are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UserError(
                f"message {number} has content of type {type(content).__name__}, not text"
            )
        if role == "system":
            if number > 1:
                raise UserError(f"message {number} is a system message: it can only come first")
            continue
        if role != expected:
            raise UserError(
                f"message {number} is the {role}'s where the {expected}'s turn is: they must alternate"
            )
        expected = "assistant" if role == "user" else "user"


def _compile(source: str) -> Any:
    """The template with the names and extensions that transformers gives it."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: what stands between is the assistant's."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    def complain(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = complain
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        ) from None
