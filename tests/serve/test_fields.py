"""The tables of fields: complete, and the same in the documentation."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from lit_llm.serve.api.requests.fields import CHAT, COMPLETIONS, RESPONSES, Field, check_fields
from lit_llm.serve.api.requests.schema import ChatBody, CompletionBody, ResponsesBody

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
MARK = "pytest tests/serve/test_fields.py -->\n"
TABLES = {
    "POST /v1/chat/completions": (CHAT, ChatBody),
    "POST /v1/completions": (COMPLETIONS, CompletionBody),
    "POST /v1/responses": (RESPONSES, ResponsesBody),
}


def table(title: str, fields: dict[str, Field]) -> str:
    lines = [f"\n### `{title}`\n", "| field | effect | |", "|---|---|---|"]
    order = ("honoured", "accepted without effect", "refused")
    for name, field in sorted(fields.items(), key=lambda item: (order.index(item[1].effect), item)):
        star = " *" if field.ours else ""
        lines.append(f"| `{name}`{star} | {field.effect} | {field.note} |")
    return "\n".join(lines) + "\n"


def test_the_tables_in_the_documentation_are_the_codes() -> None:
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark
    text = head + mark + "".join(table(title, fields) for title, (fields, _) in TABLES.items())
    if os.environ.get("WRITE_FIELDS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text


def test_every_field_of_openai_is_in_a_table() -> None:
    """The package is written from OpenAI's own schema."""
    pytest.importorskip("openai")
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params as responses

    for params, fields in (
        (chat.CompletionCreateParamsBase, CHAT),
        (completion.CompletionCreateParamsBase, COMPLETIONS),
        (responses.ResponseCreateParamsBase, RESPONSES),
    ):
        theirs = set(params.__annotations__) | {"stream"}
        assert theirs <= fields.keys(), theirs - fields.keys()
        ours = {name for name, field in fields.items() if not field.ours}
        # A name that OpenAI's API lacks is marked. Newer packages may drop one.
        assert ours - theirs <= {"max_tokens", "functions", "function_call", "user"}


def test_honoured_fields_are_those_that_have_a_type() -> None:
    for fields, body in TABLES.values():
        honoured = {name for name, field in fields.items() if field.effect == "honoured"}
        assert honoured == set(body.model_fields)


def test_a_null_and_a_false_field_are_not_refused() -> None:
    assert check_fields({"echo": False}, COMPLETIONS, "refuse") == ({}, ["echo"])


def test_the_compose_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r'```yaml title="needs Docker"\n(.*?)```', text, re.S)
    services = yaml.safe_load(block)["services"]
    from lit_llm.serve.options import server_parser

    for name in ("first", "second"):
        verb, *arguments = services[name]["command"]
        options = server_parser().parse_args(arguments)
        assert verb == "serve" and options.host == "0.0.0.0"
        assert options.store.startswith("postgresql://")
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()
