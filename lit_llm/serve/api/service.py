"""Service: what all routes share: the models, who may use them, and the server's state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.engine.requests import GenerationEngine
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.keys import Key
from lit_llm.serve.api.answers.reader import Alternatives
from lit_llm.serve.api.backends.backend import Backend
from lit_llm.serve.api.errors import ApiError, refused
from lit_llm.serve.api.metrics import Metrics
from lit_llm.serve.api.requests.fields import Unknown

Result = TypeVar("Result")


@dataclass
class ServedModel:
    """A model under the name that clients give.

    Attributes:
        name: the id in GET /v1/models.
        engine: computes its answers.
        tokenizer: of the model.
        chat: its chat format; None if it has no chat template.
        digest: of the weights, for the records.
        root: path of the checkpoint.
        adapter: name of the engine's adapter; None for the base.
        parent: id of the base, for an adapter.
        context: tokens of a prompt and its answer together, where the engine's memory allows fewer
            than its model.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    engine: GenerationEngine
    tokenizer: Tokenizer
    chat: ChatFormat | None
    digest: str = ""
    root: str = ""
    adapter: str | None = None
    parent: str | None = None
    context: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.alternatives = Alternatives(self.tokenizer)

    @property
    def max_seq_len(self) -> int:
        """Tokens of a prompt and its answer together."""
        return min(self.engine.max_seq_len, self.context or self.engine.max_seq_len)


@dataclass
class Service:
    """The server behind the routes.

    Attributes:
        models: by name.
        gate: keys, limits and records.
        backends: other servers, by the name of their model.
        unknown: what to do with unknown fields.
        prefix_scope: "key": prompts of one key are not found in the cache by another; "all".
        store_texts: whether prompts and answers are kept with the records.
        loopback: the server listens on this machine only; Host and Origin are checked.
        hosts: further names of this machine for that check.
        draining: the server ends; new requests are refused.
        failed: the engine is dead.
        metrics: counts of what happened.
        waiting: wakes each request that waits for the engine.
    """

    models: dict[str, ServedModel]
    gate: Gate
    backends: dict[str, Backend] = field(default_factory=dict)
    unknown: Unknown = "refuse"
    prefix_scope: str = "key"
    store_texts: bool = False
    loopback: bool = True
    hosts: Sequence[str] = ()
    draining: bool = False
    failed: bool = False
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.waiting: set[Callable[[], None]] = set()
        # Tokenizers and templates keep a state between calls, so one thread at a time uses them.
        self._encoder = ThreadPoolExecutor(1, "encode")

    def model(self, name: str, key: Key | None) -> ServedModel:
        """The model of this name.

        Raises:
            ApiError: 404 `model_not_found`; 403 if the key does not allow it; 400 for a model of
                another server, which answers chats alone.
        """
        if name in self.backends:
            raise refused(
                f"{name!r} is answered by another server, for /v1/chat/completions alone",
                param="model",
                code="unsupported_model",
            )
        if name not in self.models:
            raise ApiError(
                404,
                f"there is no model {name!r}; there are {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        self.check_allowed(name, key)
        return self.models[name]

    @property
    def names(self) -> list[str]:
        """Names of all models, those of other servers too."""
        return [*self.models, *self.backends]

    def check_allowed(self, name: str, key: Key | None) -> None:
        """Raise ApiError 403 if the key may not use a model."""
        if key is not None and not key.allows(name):
            raise ApiError(
                403,
                f"this key may not use the model {name!r}",
                param="model",
                code="model_not_allowed",
            )

    async def encode(self, work: Callable[[], Result]) -> Result:
        """Run ``work``, which renders or encodes texts, in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, work)

    def ready(self) -> bool:
        """Whether requests are taken and answered."""
        alive = all(model.engine.alive() for model in self.models.values())
        return alive and not self.draining and not self.failed

    def fail(self) -> None:
        """The engine is dead: tell everybody who waits for an answer."""
        self.failed = True
        for wake in list(self.waiting):
            wake()
