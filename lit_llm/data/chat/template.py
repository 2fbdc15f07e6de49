"""ChatTemplate: Jinja source that renders messages as text, in the same way as transformers.

Names, filters and extensions are those of transformers' chat_template_utils.py, so the text is the
same. There is one intended difference: a control token in a message stays plain text.
``<|im_end|>`` in any field of a message, in a tool's schema or in a tool's argument gets a mark
inside (`CUT`), and `RenderedEncoder` encodes such text as characters.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from lit_llm.errors import UserError

Message = dict[str, Any]

# Unicode noncharacters, which no text may contain. CUT is placed inside a control token from a
# message's text. BEGIN and END surround the text of {% generation %} blocks.
CUT, BEGIN, END = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{CUT}{BEGIN}{END}]")
_ESCAPED_CUT = re.compile(r"(?<!\\)((?:\\\\)*)\\ufdd0")
# Variables that the program sets; arguments of a row may not replace them.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
# Templates split an assistant's message at these strings to find its thoughts, so they get no mark
# there.
_THOUGHT_MARKS = ("<think>", "</think>")


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja source.
        names: special tokens by name: {"bos_token": "<s>", ...}.
        control_tokens: the tokenizer's control tokens, which a message's text cannot produce.

    Attributes:
        source, names: as given.
        control: pattern of a control token in rendered text that does not come from a message.
        marks_answers: the source has {% generation %} blocks.
        always_opened: a generation prompt that the source writes even without
            ``add_generation_prompt``; see `TemplateProbe.always_opened`. It is then removed.

    Raises:
        UserError: the source is not valid Jinja.
    """

    def __init__(self, source: str, names: Mapping[str, str], control_tokens: Iterable[str]):
        self.source, self.names = source, dict(names)
        self._compiled = _compile(source)
        self.always_opened = ""
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        spelled = sorted(control_tokens, key=len, reverse=True)
        self.control = _any_of(spelled)
        self._control_in_answers = _any_of([t for t in spelled if t not in _THOUGHT_MARKS])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_compiled"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compiled = _compile(self.source)  # compiled Jinja templates cannot be pickled

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Render the conversation as text, with `CUT`, `BEGIN` and `END` in it.

        Args:
            messages: the variable ``messages``.
            add_generation_prompt: end with the beginning of an assistant's turn.
            arguments: further variables by name: ``tools`` and switches of the template.

        Raises:
            UserError: with the template's own message.
        """
        import jinja2

        given = {"tools": None, "documents": None, **self._defused(arguments or {}, self.control)}
        try:
            text = self._compiled.render(
                {
                    **self.names,
                    **given,
                    "messages": [self._defused_message(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the messages: {error}") from None
        except Exception as error:  # a template is code and can raise any exception
            raise UserError(f"the chat template fails ({type(error).__name__}: {error})") from None
        return text if add_generation_prompt else text.removesuffix(self.always_opened)

    def knows(self, name: str) -> bool:
        """Whether the source contains ``name``. Otherwise the template cannot use it."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def control_run(self, text: str) -> list[re.Match[str]]:
        """Control tokens at the beginning of ``text``, possibly with white space between them."""
        found: list[re.Match[str]] = []
        for match in self.control.finditer(text):
            if text[found[-1].end() if found else 0 : match.start()].strip():
                break
            found.append(match)
        return found

    def closing_run(self, text: str) -> list[re.Match[str]]:
        """Control tokens at the end of ``text``, possibly with white space; the last one first."""
        found: list[re.Match[str]] = []
        for match in reversed(list(self.control.finditer(text))):
            if text[match.end() : found[-1].start() if found else len(text)].strip():
                break
            found.append(match)
        return found

    def defused(self, text: str) -> str:
        """``text`` as it appears in rendered text: with a mark in each control token."""
        return self._defused(text, self.control)

    def _defused_message(self, message: Message) -> Message:
        if message.get("role") != "assistant" or "content" not in message:
            return self._defused(message, self.control)
        content = self._defused(message["content"], self._control_in_answers)
        return {**self._defused(message, self.control), "content": content}

    def _defused(self, value: Any, control: re.Pattern[str]) -> Any:
        """``value`` with a mark inside each control token in its texts, including keys."""
        if isinstance(value, str):
            return control.sub(lambda match: match[0][:1] + CUT + match[0][1:], plain(value))
        if isinstance(value, dict):
            return {
                self._defused(key, control): self._defused(item, control)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._defused(item, control) for item in value]
        return value


def plain(text: str) -> str:
    """Rendered text without this module's marks."""
    return _MARKS.sub("", text)


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Remove `BEGIN` and `END` from rendered text; also returns the marked spans (first, end)."""
    pieces = re.split(f"[{BEGIN}{END}]", text)
    ends = list(itertools.accumulate(map(len, pieces)))
    return "".join(pieces), list(zip(ends[0:-1:2], ends[1:-1:2], strict=True))


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _compile(source: str) -> Any:
    """Compile the template with the names, filters and extensions of transformers."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: marks the text that the assistant writes."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{BEGIN}{caller()}{END}"

    def complain(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = complain
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
        ) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' ``tojson``: Jinja's own filter escapes HTML and lacks these options."""
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return _ESCAPED_CUT.sub(lambda match: match[1] + CUT, text) if ensure_ascii else text
