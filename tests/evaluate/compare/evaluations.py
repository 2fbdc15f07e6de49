"""Evaluations written by hand, as ``lit_llm evaluate`` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lit_llm.evaluate.results.folder import Evaluation


def choices(
    scores: Sequence[float], clusters: Sequence[object] | None = None, **task: Any
) -> dict[str, Any]:
    """A task of four choices with these scores under acc_norm (and acc)."""
    count = len(scores)
    return {
        "metrics": {"acc_norm": {}, "acc": {}},
        "rows": [
            {"id": f"q{number}", "cluster": str(clusters[number] if clusters else number),
             "gold": number % 4, "log_likelihoods": [-1.0, -2.0, -3.0, -4.0],
             "margin": score - 0.5, "score.acc_norm": float(score), "score.acc": float(score)}
            for number, score in enumerate(scores)
        ],
        "value": sum(scores) / count,
        **task,
    }  # fmt: skip


def texts(bits: Sequence[float], lengths: Sequence[float], **task: Any) -> dict[str, Any]:
    """A task of texts with these bits, under bits_per_byte and byte_perplexity."""
    return {
        "metrics": {
            "bits_per_byte": {"aggregation": "ratio", "higher_is_better": False},
            "byte_perplexity": {"aggregation": "exp_ratio", "higher_is_better": False},
        },
        "rows": [
            {"id": f"t{number}", "cluster": f"t{number}", "score.bits_per_byte": bit,
             "weight.bits_per_byte": length, "score.byte_perplexity": bit * 0.7,
             "weight.byte_perplexity": length}
            for number, (bit, length) in enumerate(zip(bits, lengths, strict=True))
        ],
        "value": sum(bits) / sum(lengths),
        **task,
    }  # fmt: skip


def write_evaluation(parent: Path, name: str, **tasks: dict[str, Any]) -> Path:
    """Write a folder; a task's "fingerprint", "num_fewshot", ... may be given."""
    found = Evaluation(parent / name, {"weights_sha256": name}, {"checkpoint": name,
                                                                 "adapter": None})  # fmt: skip
    rows: list[dict[str, Any]] = []
    for task, content in tasks.items():
        rows += [{"task": task, "filter": "none", **row} for row in content["rows"]]
        of_metric = {
            "value": content["value"], "stderr": None, "low": None, "high": None,
            "aggregation": "mean", "higher_is_better": True, "items": len(content["rows"]),
            "clusters": len({row["cluster"] for row in content["rows"]}),
        }  # fmt: skip
        found.tasks[task] = {
            "fingerprint": content.get("fingerprint", "same"),
            "template_sha256": content.get("template_sha256", "none"),
            "num_fewshot": content.get("num_fewshot", 0),
            "metrics": {
                metric: {**of_metric, **entry} for metric, entry in content["metrics"].items()
            },
        }
    every: dict[str, None] = {key: None for row in rows for key in row}
    found.items = pa.table({key: [row.get(key) for row in rows] for key in every})
    found.write()
    return found.folder
