"""The fields of OpenAI's requests: which are honoured, which have no effect, which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_llm.serve.api.errors import refused

Effect = Literal["honoured", "accepted without effect", "refused"]
Unknown = Literal["refuse", "ignore"]


@dataclass(frozen=True)
class Field:
    """What becomes of a field.

    Attributes:
        effect: see the type.
        note: what it does, or why it has no effect.
        ours: the field is no part of OpenAI's API.
    """

    effect: Effect
    note: str = ""
    ours: bool = False


def _honoured(note: str, ours: bool = False) -> Field:
    return Field("honoured", note, ours)


def _no_effect(note: str) -> Field:
    return Field("accepted without effect", note)


def _refused(note: str) -> Field:
    return Field("refused", note)


_SAMPLING = {
    "temperature": _honoured("0 to 2; 0 takes the most likely token"),
    "top_p": _honoured("above 0 to 1"),
    "presence_penalty": _honoured("-2 to 2"),
    "frequency_penalty": _honoured("-2 to 2"),
    "logit_bias": _honoured("at most 1,024 token ids, -100 to 100 each"),
    "seed": _honoured("the same seed gives the same answer"),
    "n": _honoured("1 to 8 answers"),
    "stop": _honoured("at most 16 texts; the answer ends before them"),
    "stream": _honoured("server-sent events"),
    "stream_options": _honoured("`include_usage`; `include_obfuscation` has no effect"),
    "model": _honoured("a name of `GET /v1/models`"),
    "user": Field("honoured", "kept with the request, so that `lit_llm serve erase` finds it"),
    "top_k": _honoured("number of most likely tokens, 0 for all", ours=True),
    "min_p": _honoured("0 to 1", ours=True),
    "repetition_penalty": _honoured("above 0 to 10", ours=True),
    "ignore_eos": _honoured("write up to the limit; for measurements", ours=True),
}
_HINTS = {
    "metadata": _no_effect("of OpenAI's dashboard"),
    "store": _no_effect("of OpenAI's dashboard"),
    "service_tier": _no_effect("there is one"),
    "prompt_cache_key": _no_effect("prefixes are found by their tokens"),
    "prompt_cache_options": _no_effect("prefixes are found by their tokens"),
    "prompt_cache_retention": _no_effect("prefixes are kept while there is room"),
    "safety_identifier": _no_effect("nothing is reported to anybody"),
    "verbosity": _no_effect("no template knows it"),
}
CHAT: dict[str, Field] = {
    **_SAMPLING,
    **_HINTS,
    "messages": _honoured("roles developer, system, user, assistant, tool; texts"),
    "max_completion_tokens": _honoured("longest answer; absent: the rest of the context"),
    "max_tokens": _honoured("older name of `max_completion_tokens`"),
    "logprobs": _honoured("of the unmodified distribution"),
    "top_logprobs": _honoured("0 to 20"),
    "response_format": _honoured("`text`, `json_object`, `json_schema`, by a grammar"),
    "tools": _honoured("functions"),
    "tool_choice": _honoured("`none`, `auto`; `required` and a name by a grammar"),
    "reasoning_effort": _honoured("where the template takes it; `none` turns the thoughts off"),
    "modalities": _honoured('`["text"]` alone'),
    "chat_template_kwargs": _honoured("switches of the chat template", ours=True),
    "parallel_tool_calls": _no_effect("templates have one way; it is the model's choice"),
    "prediction": _no_effect("changes OpenAI's speed only"),
    "audio": _refused("the models read and write text"),
    "functions": _refused("older name of `tools`"),
    "function_call": _refused("older name of `tool_choice`"),
    "moderation": _refused("there is no moderation"),
    "web_search_options": _refused("there is no search"),
}
"""Fields of POST /v1/chat/completions."""
COMPLETIONS: dict[str, Field] = {
    **_SAMPLING,
    "prompt": _honoured("a text or a list of token ids, or a list of such prompts"),
    "max_tokens": _honoured("longest answer; absent: 16"),
    "logprobs": _honoured("0 to 5 alternatives beside each token"),
    "best_of": _refused("use `n`"),
    "echo": _refused("the prompt is known to the client"),
    "suffix": _refused("the models continue texts"),
}
"""Fields of POST /v1/completions."""

RESPONSES: dict[str, Field] = {
    **{name: field for name, field in _HINTS.items() if name not in ("metadata", "verbosity")},
    **{name: _SAMPLING[name] for name in ("model", "temperature", "top_p", "stream", "user")},
    "input": _honoured("a text, or messages, function calls, their outputs and thoughts"),
    "instructions": _honoured("the first system message"),
    "max_output_tokens": _honoured("longest answer; absent: the rest of the context"),
    "metadata": _honoured("given back; `skipped_tools` names tools that are no functions"),
    "reasoning": _honoured("`effort`, as `reasoning_effort` of the chat API"),
    "text": _honoured("`format`: `text`, `json_object`, `json_schema`"),
    "tools": _honoured("functions; other types are skipped and named in the answer's metadata"),
    "tool_choice": _honoured("as in the chat API"),
    "access_programs": _no_effect("of OpenAI's"),
    "include": _no_effect("there is nothing more to include"),
    "max_tool_calls": _no_effect("of OpenAI's own tools"),
    "parallel_tool_calls": _no_effect("templates have one way; it is the model's choice"),
    "stream_options": _no_effect("nothing is obfuscated"),
    "truncation": _no_effect("a prompt beyond the context is refused"),
    "background": _refused("answers are given while the client waits"),
    "background_options": _refused("answers are given while the client waits"),
    "context_management": _refused("the client decides what is in the context"),
    "conversation": _refused("responses are not kept; send the conversation"),
    "image": _refused("the models write text"),
    "moderation": _refused("there is no moderation"),
    "previous_response_id": _refused("responses are not kept; send the conversation"),
    "prompt": _refused("there are no stored prompts"),
    "top_logprobs": _refused("use the chat API"),
}
"""Fields of POST /v1/responses."""


def check_fields(
    body: Mapping[str, Any], fields: Mapping[str, Field], unknown: Unknown
) -> tuple[dict[str, Any], list[str]]:
    """Sort the fields of a body.

    Args:
        body: without null fields.
        fields: the route's table.
        unknown: what to do with fields outside the table.

    Returns:
        The honoured fields, and the names of those without effect.

    Raises:
        ApiError: 400 for a field that is refused, and for an unknown one with "refuse".
    """
    honoured, ignored = {}, []
    for name, value in body.items():
        field = fields.get(name)
        if field is None:
            if unknown == "refuse":
                raise refused(
                    f"unknown field {name!r}; the server can be told to ignore such fields "
                    "(--unknown ignore)",
                    param=name,
                    code="unknown_parameter",
                )
            ignored.append(name)
        elif field.effect == "refused":
            if value is False:
                ignored.append(name)
                continue
            raise refused(
                f"{name!r} is not supported: {field.note}",
                param=name,
                code="unsupported_parameter",
            )
        elif field.effect == "honoured":
            honoured[name] = value
        else:
            ignored.append(name)
    return honoured, ignored
