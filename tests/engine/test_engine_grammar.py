"""Grammars: what is answered can be parsed, in any company; what cannot be enforced is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import Event, Finished, GenerationRequest, SamplingSettings
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from tests.engine.models import answer, drive, tiny

llguidance = pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["anna", "bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
JSON = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA, {"whitespace_flexible": False})
REGEX = llguidance.LLMatcher.grammar_from_regex("(yes|no){2}")


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(corpus / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """Its vocabulary has rows beyond the tokenizer's."""
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "max_seq_len": 512}
    model = Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size + 40, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.bfloat16()


def asked(tokenizer: Tokenizer, count: int, grammar: str) -> list[GenerationRequest]:
    prompt = tokenizer.encode("Who is it?")
    return [
        GenerationRequest(
            prompt, 200, SamplingSettings(temperature=1.0), seed=seed, grammar=grammar,
            stop_ids=[tokenizer.eos_id], top_logprobs=1,
        )
        for seed in range(count)
    ]  # fmt: skip


def text(tokenizer: Tokenizer, events: list[Event]) -> str:
    end = events[-1]
    assert isinstance(end, Finished) and end.reason == "stop"
    return tokenizer.decode([event.id for event in events[:-1]])  # type: ignore[union-attr]


def test_answers_follow_their_grammars_in_any_company(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    free = GenerationRequest([5, 6, 7], 60, seed=3)
    requests = [*asked(tokenizer, 5, JSON), *asked(tokenizer, 2, REGEX), free]
    together = drive(Engine(model, 4000, tokenizer=tokenizer), requests)
    for events in together[:5]:
        found = json.loads(text(tokenizer, events))
        assert found.keys() == SCHEMA["properties"].keys()
        assert found["name"] in ("anna", "bob") and 0 <= found["age"] <= 99
    for events in together[5:7]:
        assert text(tokenizer, events) in ("yesyes", "yesno", "noyes", "nono")
    single = [drive(Engine(model, 4000, tokenizer=tokenizer), [r])[0] for r in requests]
    assert [answer(events) for events in together] == [answer(events) for events in single]


def test_an_answer_ends_where_nothing_may_follow(model: Transformer, tokenizer: Tokenizer) -> None:
    """Also without a token that could end it."""
    request = GenerationRequest([5], 50, seed=1, grammar=REGEX)
    events = drive(Engine(model, 1000, tokenizer=tokenizer), [request])[0]
    assert len(text(tokenizer, events)) in (4, 5, 6)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("{", "grammar: "),
        (llguidance.LLMatcher.grammar_from_json_schema({"type": "strange"}), "strange"),
        (llguidance.LLMatcher.grammar_from_json_schema({"$ref": "#"}), "no token may begin"),
        (
            llguidance.LLMatcher.grammar_from_json_schema(
                {"type": "array", "uniqueItems": True, "contains": {"type": "null"}}
            ),
            "contains",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    model: Transformer, tokenizer: Tokenizer, grammar: str, message: str
) -> None:
    engine = Engine(model, 1000, tokenizer=tokenizer)
    with pytest.raises(UserError, match=message) as error:
        engine.check(GenerationRequest([1], 5, grammar=grammar))
    assert "\n" not in str(error.value)


def test_an_engine_without_a_tokenizer_refuses_grammars() -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Engine(tiny(), 1000).check(GenerationRequest([1], 5, grammar=REGEX))
