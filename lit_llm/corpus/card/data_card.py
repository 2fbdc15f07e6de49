"""Make the data card: a JSON object that describes a corpus, from the counts in its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_llm.corpus.card.page import write_page
from lit_llm.corpus.card.readme import write_readme
from lit_llm.corpus.config import MixtureSettings
from lit_llm.corpus.output import score_sketch
from lit_llm.corpus.output.folder import FORMAT
from lit_llm.corpus.output.mixture import shares
from lit_llm.corpus.output.statistics import distinct_ngrams, entropy, merge
from lit_llm.corpus.pipeline import Pipeline
from lit_llm.corpus.steps import REMOVED
from lit_llm.corpus.storage.store import read_counts

_LISTED = 100  # most languages, hosts, ... listed by name; the rest are counted together
_EXAMPLES = 3  # most examples of dropped texts per reason
_KEPT_EXAMPLES = 12  # most examples of kept texts


def make_card(pipeline: Pipeline, fingerprint: str, sources: Any) -> dict[str, Any]:
    """The card of a build.

    Returns:
        format, created (UTC), fingerprint, sources, settings, tokenizer; read (documents and bytes
        of the sources, and the number of repaired documents by kind of damage); funnel (a row for
        each stage: documents that came in, documents dropped, and the reasons); dropped (reason ->
        documents); dropped_bytes (reason -> bytes of UTF-8 when they were dropped); damaged (their
        number and names); duplicates; examples_dropped; mixture; and the result of `describe` for
        the kept documents.
    """
    tokenizer = pipeline.tokenizer
    damaged = [list(row) for row in pipeline.broken()]
    card = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "sources": sources,
        "settings": json.loads(json.dumps(pipeline.config.content(), default=repr)),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint(),
            "vocab_size": tokenizer.vocab_size,
            "separator_id": tokenizer.eos_id,
            "trained": pipeline.config.tokenizer is None,
        },
        "read": pipeline.read,
        **describe_dropped(pipeline.dropped, pipeline.read["documents"], _stages(pipeline)),
        "dropped_bytes": dict(sorted(pipeline.dropped_bytes.items())),
        "damaged": {"documents": len(damaged), "named": damaged[:_LISTED]},
        "examples_dropped": _examples(pipeline.left_out),
        **describe(pipeline.documents),
    }
    card["mixture"] = mixture_table(card, pipeline.weights(), pipeline.config.mixture)
    return card


def revise_card(
    card: dict[str, Any], documents: list[Path], dropped: list[Path], removed: int
) -> dict[str, Any]:
    """The new card after documents were removed, from the old card and the new files."""
    weights = {row["source"]: row["weight"] for row in card["mixture"]}
    counts = Counter(card["dropped"])
    counts[REMOVED] += removed
    stages = [row["stage"] for row in card["funnel"]]
    revised = {
        **card,
        **describe_dropped(counts, card["read"]["documents"], stages),
        "examples_dropped": _examples(dropped),
        **describe(documents),
    }
    if "dropped_bytes" in card:
        gone = card["bytes"] - revised["bytes"]
        sizes = Counter(card["dropped_bytes"]) + Counter({REMOVED: gone})
        revised["dropped_bytes"] = dict(sorted(sizes.items()))
    revised["mixture"] = mixture_table(
        revised, weights, MixtureSettings(**card["settings"]["mixture"])
    )
    return revised


def write_card(card: dict[str, Any], folder: Path, name: str) -> None:
    """Write datacard.json, datacard.html and the README.md for publishing the corpus.

    ``name`` is the name of the corpus' folder. Only the page contains it, so that corpora of the
    same texts have the same datacard.json and README.md.
    """
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / "datacard.json").write_text(text + "\n", encoding="utf-8")
    write_page(card, folder / "datacard.html", name)
    write_readme(card, folder / "README.md")


def describe(documents: Iterable[Path]) -> dict[str, Any]:
    """Describe the kept documents from the counts in the metadata of their files."""
    counts = merge(read_counts(path) for path in documents)
    parts = [part for sources in counts["splits"].values() for part in sources.values()]
    total = {key: sum(part[key] for part in parts) for key in ("documents", "bytes", "tokens")}
    named = ("languages", "domains", "hosts", "licenses")
    # Only where a block of the build gives scores: other cards stay as they are.
    scores = {name: score_sketch.described(one) for name, one in counts.get("scores", {}).items()}
    return {
        **total,
        "bytes_per_token": round(total["bytes"] / total["tokens"], 4) if total["tokens"] else 0.0,
        "splits": {
            split: dict(sorted(counts["splits"].get(split, {}).items()))
            for split in ("train", "validation")
        },
        "split_languages": {
            split: _largest(names) for split, names in sorted(counts["split_languages"].items())
        },
        **{name: _largest(counts[name]) for name in named},
        **{name: dict(sorted(counts[name].items())) for name in ("pii", "changed_by")},
        **{
            name: _by_edge(counts[name])
            for name in ("lengths", "language_scores", "bytes_per_token_histogram")
        },
        **({"scores": scores} if scores else {}),
        "diversity": {
            "distinct_3_grams": round(distinct_ngrams(counts["ngrams"]), 4),
            **{
                f"{name}_entropy_bits": round(
                    entropy({key: n["documents"] for key, n in counts[name].items()}), 3
                )
                for name in named
            },
        },
        "examples_kept": _spread(counts["examples"]),
    }


def describe_dropped(dropped: dict[str, int], read: int, stages: list[str]) -> dict[str, Any]:
    """The keys funnel, dropped and duplicates, from reasons ("stage: why") and their counts."""
    by_stage: dict[str, dict[str, int]] = {stage: {} for stage in stages}
    for reason, count in dropped.items():
        stage, _, why = reason.partition(": ")
        by_stage.setdefault(stage, {})[why] = count
    funnel, left = [], read
    for stage, reasons in by_stage.items():
        gone = sum(reasons.values())
        funnel.append({"stage": stage, "documents": left, "dropped": gone, "reasons": reasons})
        left -= gone
    duplicates = sum(
        count for reason, count in dropped.items() if reason.endswith("_dedup: duplicate")
    )
    return {"funnel": funnel, "dropped": dict(sorted(dropped.items())), "duplicates": duplicates}


def mixture_table(
    card: dict[str, Any], weights: dict[str, float], settings: MixtureSettings
) -> list[dict[str, Any]]:
    """One row per source: training tokens, weight, share of training, and epochs.

    Epochs are passes over the source in a run of ``settings.tokens`` tokens.
    """
    tokens = {name: part["tokens"] for name, part in card["splits"]["train"].items()}
    if not tokens:
        return []
    found = shares(tokens, weights, settings)
    run = settings.tokens or sum(tokens.values())
    return [
        {
            "source": name, "tokens": size, "weight": weights[name], "share": round(found[name], 6),
            "epochs": round(found[name] * run / size, 3),
        }
        for name, size in tokens.items()
    ]  # fmt: skip


def _stages(pipeline: Pipeline) -> list[str]:
    """Names of the stages that can drop documents, in their order."""
    dedup, evaluations = pipeline.config.dedup, pipeline.config.evaluations
    after = ["exact_dedup"] if dedup else []
    after += ["near_dedup"] if dedup and dedup.threshold is not None else []
    after += ["decontaminate"] if evaluations else []
    return ["read", *(block.name for block in pipeline.config.blocks()), *after]


def _examples(paths: Iterable[Path]) -> dict[str, list[list[str]]]:
    """Reason -> [id, beginning of the text] of the first few dropped documents."""
    found: dict[str, list[list[str]]] = {}
    for path in paths:
        for reason, examples in read_counts(path)["examples"].items():
            shown = found.setdefault(reason, [])
            shown += examples[: _EXAMPLES - len(shown)]
    return dict(sorted(found.items()))


def _largest(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The names with the most documents, and the sum of the others as "(others)"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1]["documents"], item[0]))
    rest = ordered[_LISTED:]
    kept = dict(ordered[:_LISTED])
    if rest:
        kept["(others)"] = {
            key: sum(part[key] for _, part in rest) for key in ("documents", "bytes", "tokens")
        }
    return kept


def _by_edge(counts: dict[str, int]) -> dict[str, int]:
    """A histogram, sorted by the lower edges of its bars."""
    return dict(sorted(counts.items(), key=lambda item: float(item[0])))


def _spread(examples: list[list[str]]) -> list[list[str]]:
    """A few examples, evenly spaced over the corpus."""
    step = max(1, -(-len(examples) // _KEPT_EXAMPLES))
    return examples[::step]
