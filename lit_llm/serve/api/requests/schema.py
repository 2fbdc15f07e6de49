"""Types and ranges of the honoured fields."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lit_llm.models.engine.requests import SamplingSettings
from lit_llm.serve.api.errors import ApiError, refused

MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES, MOST_BIASES = 8, 16, 20, 1024
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]


class _Strict(BaseModel):
    """A JSON object of exact types: "1" is no number, 1 is no text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingBody(_Strict):
    """Fields that /v1/chat/completions and /v1/completions share."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=10**9)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[_TokenId, _Bias] = Field({}, max_length=MOST_BIASES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)
    ignore_eos: bool = False

    @property
    def stops(self) -> list[str]:
        """The stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def without_effect(self) -> list[str]:
        """Fields inside others that have no effect."""
        options = self.stream_options
        if options is None or options.include_obfuscation is None:
            return []
        return ["stream_options.include_obfuscation"]

    def sampling(self, vocab_size: int) -> SamplingSettings:
        """The settings for the engine.

        Raises:
            ApiError: 400 for a bias of a token that the model does not have.
        """
        for token in self.logit_bias:
            if int(token) >= vocab_size:
                raise refused(
                    f"logit_bias: there is no token {token}; the vocabulary has {vocab_size}",
                    param="logit_bias",
                )
        return SamplingSettings(
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p,
            min_p=self.min_p,
        )

    def chosen_seed(self) -> int:
        """The seed as a number from 0, a random one if there is none."""
        return secrets.randbits(63) if self.seed is None else self.seed % 2**63

    def check_stream_options(self) -> None:
        """Raise ApiError 400 if there are options of a stream and no stream."""
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options is for stream=true only", param="stream_options")


class Function(_Strict):
    """A function that the model may call."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Strict):
    """The name in `NamedTool`."""

    name: str


class NamedTool(_Strict):
    """A tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Strict):
    """A schema in `ResponseFormat`."""

    name: _Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(SamplingBody):
    """Honoured fields of POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def limit(self) -> int | None:
        """The longest answer in tokens, or None."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(SamplingBody):
    """Honoured fields of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(16, ge=1, le=10**9)
    logprobs: int | None = Field(None, ge=0, le=5)


class ReasoningOptions(_Strict):
    """The field ``reasoning`` of the Responses API."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextOptions(_Strict):
    """The field ``text`` of the Responses API."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesBody(_Strict):
    """Honoured fields of POST /v1/responses; most are checked as those of `ChatBody`."""

    model: str
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: _Count | None = None
    metadata: dict[str, str] = Field({}, max_length=16)
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] = Field([], max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    user: str | None = None


class TokenizeBody(_Strict):
    """Fields of POST /tokenize."""

    model: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, Any] = {}


Body = TypeVar("Body", bound=BaseModel)


def checked(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    """Check types and ranges.

    Raises:
        ApiError: 400, names the first field that is wrong.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_input=False)
    # A field with several types has the errors of each. One of the value says more than one of the
    # type, which says that it is another type's value.
    same = [other for other in found if other["loc"][0] == found[0]["loc"][0]]
    first = next((other for other in same if not other["type"].endswith("_type")), found[0])
    path = ""
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int") and not part[0].isupper():
            # The others are names of types, of a field with several.
            path += f".{part}" if path else part
    if first["type"] == "missing":
        return refused(f"{path} is required", param=path, code="missing_required_parameter")
    return refused(f"{path}: {first['msg']}", param=path, code="invalid_value")
