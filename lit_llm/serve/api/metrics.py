"""Metrics: what GET /metrics tells Prometheus; no text of a prompt and no key is in it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, namespace="lit_llm", registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(
                name, text, namespace="lit_llm", registry=self.registry, buckets=_SECONDS
            )

        self.requests = counter("requests", "HTTP requests", ("route", "status"))
        self.answers = counter("answers", "ended answers", ("model", "reason"))
        self.prompt_tokens = counter("prompt_tokens", "tokens of prompts", ("model",))
        self.cached_tokens = counter("cached_tokens", "of them found in the cache", ("model",))
        self.completion_tokens = counter("completion_tokens", "generated tokens", ("model",))
        self.running = Gauge(
            "running", "requests being answered", namespace="lit_llm", registry=self.registry
        )
        self.first_token = histogram("first_token_seconds", "time to the first token")
        self.duration = histogram("answer_seconds", "time to the end of the answer")

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
