"""Rows of ``items.parquet``: what a model answered to each item, and its scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from lit_llm.errors import UserError
from lit_llm.evaluate.results.clusters import cluster_of
from lit_llm.evaluate.results.fingerprints import prompt_fingerprint
from lit_llm.models.tokenizer import Tokenizer

AGGREGATIONS = {
    "mean": "mean",
    "nanmean": "mean",
    "bits_per_byte": "ratio",
    "weighted_perplexity": "exp_ratio",
    "perplexity": "exp_ratio",
}
"""lm-eval's name -> how the scores of items make the metric.

mean: their mean; ratio: the sum of scores over the sum of weights; exp_ratio: e to the ratio. A
metric with another aggregation, such as F1 of the whole task, has no scores of items.
"""
FIELDS = [
    ("task", pa.string()), ("filter", pa.string()), ("id", pa.string()), ("cluster", pa.string()),
    ("prompt_sha256", pa.string()), ("response", pa.string()),
    ("log_likelihoods", pa.list_(pa.float64())), ("gold", pa.int64()), ("margin", pa.float64()),
    ("response_tokens", pa.int64()), ("empty", pa.bool_()), ("no_answer", pa.bool_()),
]  # fmt: skip
"""Columns besides ``score.<metric>`` and ``weight.<metric>``.

- prompt_sha256: first 16 digits.
- response: the chosen answer or the generated text.
- log_likelihoods: nats of each answer that was scored.
- gold: index of the right answer, for choices. margin: its log-likelihood minus that of the best
  wrong answer, in nats.
- response_tokens: length of a generated text. empty: it has no text. no_answer: the task's filter
  found no answer in it.
"""
_NOT_FOUND = "[invalid]"  # what lm-eval's filters write


def aggregation_of(task: Any, metric: str) -> str | None:
    """How the metric's value is made of items' scores, see `AGGREGATIONS`; None if it is not."""
    function = task.aggregation().get(metric)
    return AGGREGATIONS.get(getattr(function, "__name__", "mean") if function else "mean")


def items_table(
    results: Mapping[str, Any],
    tasks: Mapping[str, Any],
    tokenizer: Tokenizer,
    cluster_by: str | None = None,
) -> pa.Table:
    """The rows of all items.

    Args:
        results: of `run_task` with ``log_samples``.
        tasks: name -> lm-eval's task, as loaded.
        tokenizer: counts tokens of generated texts.
        cluster_by: see `cluster_of`.

    Raises:
        UserError: a document has no field ``cluster_by``, or there are no items.
    """
    rows: list[dict[str, Any]] = []
    for name, samples in results["samples"].items():
        rows += _rows(name, tasks[name], samples, tokenizer, cluster_by)
    if not rows:
        raise UserError("has no items")
    scores = sorted({key for row in rows for key in row if key.startswith(("score.", "weight."))})
    schema = pa.schema([*FIELDS, *((name, pa.float64()) for name in scores)])
    return pa.Table.from_pylist(rows, schema=schema)


def _rows(
    name: str,
    task: Any,
    samples: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    cluster_by: str | None,
) -> Iterator[dict[str, Any]]:
    ids = _ids(samples)
    cluster = cluster_of(name, cluster_by)
    kind = task.OUTPUT_TYPE
    for sample in samples:
        item = ids[sample["doc_id"]]
        row = {
            "task": name,
            "filter": sample["filter"],
            "id": item,
            "cluster": cluster(sample["doc"], item),
            "prompt_sha256": prompt_fingerprint(str(sample["arguments"][0][0])),
        }
        answer = sample["filtered_resps"]
        if kind == "multiple_choice":
            row |= _choice(sample)
        elif kind == "generate_until":
            text = answer[0] if isinstance(answer[0], str) else ""
            written = _first_text(sample["resps"])
            row |= {
                "response": written,
                "response_tokens": len(tokenizer.encode(written)),
                "empty": not written.strip(),
                "no_answer": text == _NOT_FOUND,
            }
        else:
            row["log_likelihoods"] = [_likelihood(one) for one in answer]
        for metric in sample["metrics"]:
            row |= _scores(metric, aggregation_of(task, metric), sample[metric])
        yield row


def _ids(samples: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The documents' own ids, if each has a different one; else their places."""
    documents = {sample["doc_id"]: sample["doc"] for sample in samples}
    own = {place: str(document.get("id", "")) for place, document in documents.items()}
    counts = Counter(own.values())
    if "" in counts or max(counts.values(), default=0) > 1:
        return {place: str(place) for place in documents}
    return own


def _choice(sample: Mapping[str, Any]) -> dict[str, Any]:
    values = [_likelihood(one) for one in sample["filtered_resps"]]
    chosen = max(range(len(values)), key=values.__getitem__)
    found: dict[str, Any] = {
        "log_likelihoods": values,
        "response": str(sample["arguments"][chosen][1]),
    }
    gold = sample["target"]
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(values) > 1:
        best_wrong = max(value for place, value in enumerate(values) if place != gold)
        found |= {"gold": gold, "margin": values[gold] - best_wrong}
    return found


def _likelihood(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, tuple | list) else answer)


def _first_text(answers: Any) -> str:
    while isinstance(answers, list | tuple) and answers:
        answers = answers[0]
    return answers if isinstance(answers, str) else ""


def _scores(metric: str, aggregation: str | None, value: Any) -> dict[str, float]:
    weight = None
    if aggregation is None:
        return {}
    if aggregation != "mean":  # lm-eval keeps log-likelihoods in nats, with or without a weight
        nats, weight = value if isinstance(value, tuple | list) else (value, 1)
        value = -nats / (math.log(2) if aggregation == "ratio" else 1)
    try:
        found = {f"score.{metric}": float(value)}
    except (TypeError, ValueError):
        return {}
    return found if weight is None else found | {f"weight.{metric}": float(weight)}
