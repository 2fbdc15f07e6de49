"""Descriptions of the rules that drop documents: a sentence, the limit and the setting of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Stage -> section of the settings.
_SECTIONS = {
    "opt_out": "opt_out", "normalize": "normalize", "identify_language": "language",
    "license": "license", "gopher_repetition": "gopher_repetition", "c4_quality": "c4",
    "gopher_quality": "gopher_quality", "fineweb_quality": "fineweb", "redact_pii": "privacy",
    "exact_dedup": "dedup", "near_dedup": "dedup", "decontaminate": "evaluations",
}  # fmt: skip
# Stage -> its title in the card.
STAGES = {
    "read": "Leave out what is no text",
    "opt_out": "Respect opt-outs of publishers",
    "normalize": "Repair the text",
    "identify_language": "Tell the language",
    "license": "Look at licences",
    "gopher_repetition": "Drop texts that repeat themselves",
    "c4_quality": "C4's rules for web pages",
    "gopher_quality": "Gopher's rules for prose",
    "fineweb_quality": "FineWeb's rules for web pages",
    "redact_pii": "Replace personal data",
    "exact_dedup": "Drop equal texts",
    "near_dedup": "Drop nearly equal texts",
    "decontaminate": "Drop texts of evaluation sets",
    "removed": "Remove on request",
}
# (stage, reason, sentence about a dropped document, field of the section). "{}" is replaced by the
# limit. The reason "*" stands for all other reasons of the stage.
_RULES: tuple[tuple[str, str, str, str], ...] = (
    ("opt_out", "robots", "Its robots tag says no.", "flags"),
    ("opt_out", "x_robots_tag", "Its server's X-Robots-Tag says no.", "flags"),
    ("opt_out", "tdm_reservation", "Its publisher reserves text and data mining.", "flags"),
    ("opt_out", "*", "Its address is on the list of opt-outs.", "entries"),
    ("identify_language", "score", "Less than {} of it is in its main language.", "least_score"),
    ("identify_language", "*", "Its language is not among those to keep: {}.", "keep"),
    ("license", "unknown", "Its licence is not known.", "keep_unknown"),
    ("license", "*", "Its licence is not among those allowed: {}.", "allow"),
    ("gopher_repetition", "dup_line_frac",
     "More than {} of its lines repeat an earlier line.", "dup_line_frac"),
    ("gopher_repetition", "dup_para_frac",
     "More than {} of its paragraphs repeat an earlier one.", "dup_para_frac"),
    ("gopher_repetition", "dup_line_char_frac",
     "More than {} of its characters are in repeated lines.", "dup_line_char_frac"),
    ("gopher_repetition", "dup_para_char_frac",
     "More than {} of its characters are in repeated paragraphs.", "dup_para_char_frac"),
    ("c4_quality", "lorem_ipsum",
     "It has the words \u201clorem ipsum\u201d.", "filter_lorem_ipsum"),
    ("c4_quality", "curly_bracket", "It has a curly bracket.", "filter_curly_bracket"),
    ("c4_quality", "too_few_sentences", "It has fewer than {} sentences.", "min_num_sentences"),
    ("gopher_quality", "gopher_short_doc", "It has fewer than {} words.", "min_doc_words"),
    ("gopher_quality", "gopher_long_doc", "It has more than {} words.", "max_doc_words"),
    ("gopher_quality", "gopher_below_avg_threshold",
     "Its words have fewer than {} characters on average.", "min_avg_word_length"),
    ("gopher_quality", "gopher_above_avg_threshold",
     "Its words have more than {} characters on average.", "max_avg_word_length"),
    ("gopher_quality", "gopher_too_many_hashes",
     "It has more than {} \u201c#\u201d for each word.", "max_symbol_word_ratio"),
    ("gopher_quality", "gopher_too_many_ellipsis",
     "It has more than {} ellipses for each word.", "max_symbol_word_ratio"),
    ("gopher_quality", "gopher_too_many_bullets",
     "More than {} of its lines begin with a bullet.", "max_bullet_lines_ratio"),
    ("gopher_quality", "gopher_too_many_end_ellipsis",
     "More than {} of its lines end in an ellipsis.", "max_ellipsis_lines_ratio"),
    ("gopher_quality", "gopher_below_alpha_threshold",
     "Less than {} of its words have a letter.", "max_non_alpha_words_ratio"),
    ("gopher_quality", "gopher_enough_stop_words",
     "It has fewer than {} different stop words.", "min_stop_words"),
    ("fineweb_quality", "line_punct_ratio",
     "Less than {} of its lines end like a sentence.", "line_punct_thr"),
    ("fineweb_quality", "short_line_ratio",
     "More than {} of its lines are short.", "short_line_thr"),
    ("fineweb_quality", "char_dup_ratio",
     "More than {} of its characters are in repeated lines.", "char_duplicates_ratio"),
    ("fineweb_quality", "list_ratio",
     "It has more than {} line ends for each word.", "new_line_ratio"),
    ("exact_dedup", "duplicate", "The same text is there already.", ""),
    ("near_dedup", "duplicate",
     "At least {} of its runs of words are in another document.", "threshold"),
    ("decontaminate", "*", "It has {} words in a row from a text of an evaluation set.", "ngram"),
    ("removed", "*", "Its removal was asked for.", ""),
    ("read", "empty", "It has no text.", ""),
    ("read", "binary", "It is no text.", ""),
    ("read", "*", "It could not be read.", ""),
)  # fmt: skip
# Endings of fields whose limits are shares and are shown in percent.
_SHARES = (
    "_frac", "least_score", "_lines_ratio", "_alpha_words_ratio", "line_punct_thr",
    "short_line_thr", "char_duplicates_ratio", "threshold",
)  # fmt: skip
_NAMED = 5  # most reasons listed by name for a rule with many reasons


@dataclass(frozen=True)
class Rule:
    """One rule of a build.

    Attributes:
        stage: the step that the rule belongs to.
        sentence: a statement that is true of every dropped document.
        setting: the build's key that changes the rule, and its value; "" if there is none.
        documents, bytes: number of dropped documents and their bytes of UTF-8; bytes are None if
            the card does not contain them.
        which: the most frequent values found in the dropped documents (languages, licences,
            addresses), if the rule applies to several values.
    """

    stage: str
    sentence: str
    setting: str
    documents: int
    bytes: int | None
    which: str = ""


def rules(card: dict[str, Any]) -> list[Rule]:
    """The rules of the card's build in the order of its steps, including those without drops."""
    by_stage: dict[str, dict[str, int]] = {row["stage"]: row["reasons"] for row in card["funnel"]}
    return [
        rule
        for stage, reasons in by_stage.items()
        for rule in _of_stage(stage, dict(reasons), card)
    ]


def _of_stage(stage: str, dropped: dict[str, int], card: dict[str, Any]) -> Iterator[Rule]:
    """The rules of one stage. Reasons without a sentence in `_RULES` come last.

    ``dropped`` (reason -> documents) is emptied: each rule takes its reasons out.
    """
    section = _SECTIONS.get(stage) or _own(stage, card)
    settings = card["settings"].get(section) or {}
    sizes = card.get("dropped_bytes")

    def rule(sentence: str, field: str, limit: Any, reasons: list[str], which: str = "") -> Rule:
        key = ".".join(name for name in (section, field) if name)
        return Rule(
            stage, sentence, f"{key}: {_written(limit)}" if field else key,
            sum(dropped.pop(reason, 0) for reason in reasons),
            None if sizes is None else sum(sizes.get(f"{stage}: {why}", 0) for why in reasons),
            which,
        )  # fmt: skip

    for reason, sentence, field, limit in _single(stage, settings):
        if reason in dropped or _is_on(field, limit, reason):
            yield rule(sentence.format(_shown(field, limit)), field, limit, [reason])
    for of, reason, sentence, field in _RULES:
        limit = settings.get(field)
        if of == stage and reason == "*" and (dropped or (field and limit)):
            which = _named(dropped)
            said = sentence.format(_shown(field, limit))
            yield rule(said, field, limit, list(dropped), which)
    for reason in list(dropped):
        yield rule(f"{reason.replace('_', ' ').capitalize()}.", "", None, [reason])


def _own(stage: str, card: dict[str, Any]) -> str:
    """What names a block that the build's settings name by its class."""
    rows = card["settings"].get("extra_blocks") or []
    paths = [row["class_path"] for row in rows if row["name"] == stage]
    return f"extra_blocks: {paths[0]}" if paths else ""


def _single(stage: str, settings: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """(reason, sentence, field, limit) of the stage's rules that have a single reason."""
    for of, reason, sentence, field in _RULES:
        if of == stage and reason != "*":
            yield reason, sentence, field, settings.get(field)
    for n, share in settings.get("top_n_grams") or ():
        said = f"Its most frequent run of {n} words makes more than {share:.0%} of it."
        yield f"top_{n}_gram", said, "top_n_grams", [[n, share]]
    for n, share in settings.get("dup_n_grams") or ():
        said = f"Runs of {n} words that were there before make more than {share:.0%} of it."
        yield f"duplicated_{n}_n_grams", said, "dup_n_grams", [[n, share]]


def _is_on(field: str, limit: Any, reason: str) -> bool:
    """Whether a rule can drop anything under this limit."""
    if field == "flags":
        return reason in (limit or ())
    if field == "keep_unknown":
        return limit is False
    return not field or limit not in (None, False)


def _named(dropped: dict[str, int]) -> str:
    """The most frequent reasons with their numbers of documents, formatted."""
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason} ({count:,})" for reason, count in ordered[:_NAMED])
    more = len(ordered) - _NAMED
    return f"{shown} and {more:,} others" if more > 0 else shown


def _shown(field: str, limit: Any) -> str:
    """A limit, formatted for a sentence."""
    if isinstance(limit, bool) or limit is None:
        return ""
    if isinstance(limit, dict):  # language -> limit
        return "the language's limit"
    if isinstance(limit, list | tuple):
        return ", ".join(map(str, limit)) or "all"
    if isinstance(limit, float) and field.endswith(_SHARES):
        return f"{limit:.3g}".rstrip("0").rstrip(".") if limit > 1 else f"{100 * limit:.3g}%"
    return (
        f"{limit:,}"
        if isinstance(limit, int)
        else f"{limit:g}"
        if isinstance(limit, float)
        else str(limit)
    )


def _written(value: Any) -> str:
    """The value of a setting in YAML, on one line."""
    return json.dumps(value, ensure_ascii=False)
