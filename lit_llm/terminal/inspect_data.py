"""``lit_llm inspect CONFIG``: what a finetuning run learns, example by example.

The examples are those of the run: made by the data module of the config, from its cache.
"""

from __future__ import annotations

import importlib
import inspect as signatures
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from lit_llm.data.blocks import IGNORE
from lit_llm.errors import UserError
from lit_llm.settings.presets import all_presets, find_config
from lit_llm.settings.yaml_file import read_yaml

if TYPE_CHECKING:
    from lit_llm.data.conversations import Conversations
    from lit_llm.data.instructions import InstructionDataModule
    from lit_llm.data.trees import Tree

_FOLDERS = ("finetune", "pretrain")
_OVERRIDE = re.compile(r"--(data|model)\.(?:init_args\.)?([\w.]+)")
_EMPTY_THOUGHTS = re.compile(r"<(think\w*)>\s*</\1>")
_GREEN, _DIM, _PLAIN = "\033[32m", "\033[2m", "\033[0m"
_LINE, _TIMES = (
    20,
    3,
)  # an answer repeats itself if a line of 20 characters stands in it three times


def is_config(name: str) -> bool:
    """Whether ``lit_llm inspect`` is given a config file or a preset, and not a checkpoint."""
    path = Path(name).expanduser()
    if path.exists():
        return path.is_file() and path.suffix.lower() in (".yaml", ".yml")
    known = name.removesuffix(".yaml").removeprefix("configs/") in all_presets()
    return known or path.suffix.lower() in (".yaml", ".yml")


def split_overrides(args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split ``args`` into those of the verb and the settings ``--data.KEY`` and ``--model.KEY``.

    Raises:
        UserError: a setting without a value, or a value that is not YAML.
    """
    rest: list[str] = []
    found: dict[str, dict[str, Any]] = {"data": {}, "model": {}}
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        match = _OVERRIDE.fullmatch(option)
        if match is None:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None:
            raise UserError(f"{option}: a value is missing")
        try:
            found[match[1]][match[2]] = yaml.safe_load(given)
        except yaml.YAMLError:
            found[match[1]][match[2]] = given
    return rest, found


def inspect_examples(
    config: str, count: int, overrides: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What the run of a config learns, as plain values under the keys of ``--json``.

    Args:
        config: a YAML file or the name of a preset.
        count: number of examples to render, evenly spaced in the training split.
        overrides: from `split_overrides`.

    Raises:
        UserError: not a config of a finetuning run, or whatever ends that run before training.
    """
    data = _data_module(config, overrides)
    data.prepare_data()
    folder = data.datacard_file.parent
    card = json.loads(data.datacard_file.read_text(encoding="utf-8"))
    from lit_llm.data.conversations import load_conversations
    from lit_llm.data.rows.left_out import left_out_of

    examples = load_conversations(folder, "train")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").open(encoding="utf-8")]
    lines = [line for line in lines if line["split"] == "train" for _ in range(line["trees"])]
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
    lengths = examples.lengths
    return {
        "path": config,
        "examples": {split: counts["examples"] for split, counts in card["splits"].items()},
        "tokens": {
            name: int(np.quantile(lengths, share))
            for name, share in (("least", 0), ("median", 0.5), ("p95", 0.95), ("most", 1))
        },
        "seq_len": data.seq_len,
        "learnt_share": round(float(examples.supervised.sum() / lengths.sum()), 4),
        "left_out": left_out_of(card),
        "warnings": list(_warnings(data, examples, lines)),
        "rendered": [_rendered(data, examples, lines, int(index)) for index in chosen],
    }


def _data_module(config: str, overrides: dict[str, dict[str, Any]]) -> InstructionDataModule:
    from lit_llm.data.instructions import InstructionDataModule

    settings = read_yaml(find_config(config, _FOLDERS))
    sections = {}
    for name in ("data", "model"):
        section = settings.get(name) or {}
        if not isinstance(section, dict):
            raise UserError(f"{config}: {name} must be a mapping")
        arguments = section.get("init_args") or {}
        sections[name] = section.get("class_path", ""), {**arguments, **overrides[name]}
    path, arguments = sections["data"]
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{config}: data.class_path: no class {path!r}") from None
    if not (isinstance(cls, type) and issubclass(cls, InstructionDataModule)):
        raise UserError(f"{config}: data is {path}; --examples renders an InstructionDataModule's")
    known = signatures.signature(cls).parameters
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise UserError(f"{config}: unknown key data.{unknown[0]}; known are {', '.join(known)}")
    base = sections["model"][1].get("init_from")
    if arguments.get("tokenizer") is None and base is not None:
        arguments["tokenizer"] = base
    return cls(**arguments)


def _rendered(
    data: InstructionDataModule, examples: Conversations, lines: list[dict[str, Any]], index: int
) -> dict[str, Any]:
    """One example: its place, counts, tools, and its text in runs that are learnt or not."""
    runs, count, learnt = [], 0, 0
    for ids, weights, shared in _branches(examples[index]):
        if shared:
            runs.append({"learnt": False, "text": f"\n--- branch behind {shared:,} tokens\n"})
        end, before = shared, data.tokenizer.decode(ids[:shared])
        for weight, run in groupby(weights[shared:].tolist()):
            end += len(list(run))
            # A token's text may depend on the one before (a space mark): beginnings are decoded.
            text = data.tokenizer.decode(ids[:end])
            own = {} if weight in (0, 1) else {"weight": weight}
            runs.append({"learnt": weight > 0, "text": text[len(before) :], **own})
            before = text
        count, learnt = count + len(ids) - shared, learnt + int((weights[shared:] > 0).sum())
    return {
        "id": lines[index]["id"],
        "tokens": count,
        "learnt": learnt,
        "tools": lines[index].get("tools", []),
        "runs": runs,
    }


def _branches(tree: Tree) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(ids, weights, tokens shared with the branch before) of each path to a leaf of a tree."""
    before = np.zeros(0, np.int64)
    places = np.arange(len(tree))
    for leaf in np.flatnonzero(tree.until == places + 1):
        path = places[: leaf + 1][tree.until[: leaf + 1] > leaf]
        labels = tree.labels[path]
        # The last token of a path is only a label.
        last = labels[-1:][labels[-1:] != IGNORE]
        ids = np.concatenate([tree.input_ids[path], last])
        weights = np.concatenate([[0], tree.all_weights[path]])[: len(ids)]
        shared = int((path[: len(before)] == before[: len(path)]).sum()) if len(before) else 0
        yield ids, weights, shared
        before = path


def _warnings(
    data: InstructionDataModule, examples: Conversations, lines: list[dict[str, Any]]
) -> Iterator[str]:
    from lit_llm.data.chat.stopping import learns_to_stop

    bos, stops = data.tokenizer.bos_id, np.array(data.stop_ids)
    counts, answers = Counter[str](), Counter[bytes]()
    seen: set[str] = set()
    for index, line in enumerate(lines):
        if line["sha256"] in seen:  # a repeated example
            continue
        seen.add(line["sha256"])
        branches = list(_branches(examples[index]))
        ids = branches[0][0]
        learnt = np.concatenate([ids[at:][weights[at:] > 0] for ids, weights, at in branches])
        text = data.tokenizer.decode(learnt)
        repeats = Counter(part for part in text.split("\n") if len(part.strip()) >= _LINE)
        counts["endless"] += not np.isin(learnt, stops).any()
        counts["bos"] += bos is not None and len(ids) > 1 and bool((ids[:2] == bos).all())
        counts["thoughts"] += _EMPTY_THOUGHTS.search(text) is not None
        counts["loops"] += max(repeats.values(), default=0) >= _TIMES
        answers[learnt.tobytes()] += 1
    total = len(seen)
    if not learns_to_stop(data.chat):
        yield "the chat template ends no answer with a token that ends a text, so none is learnt"
    elif counts["endless"]:
        yield f"{counts['endless']:,} of {total:,} examples learn no token that ends an answer"
    if counts["bos"]:
        yield f"{counts['bos']:,} of {total:,} examples begin with two bos tokens"
    if counts["thoughts"]:
        yield f"{counts['thoughts']:,} of {total:,} examples learn an empty block of thoughts"
    same = sum(count for count in answers.values() if count > 1)
    if same:
        yield f"{same:,} of {total:,} examples have an answer that another example has too"
    if counts["loops"]:
        yield f"{counts['loops']:,} of {total:,} answers repeat a line {_TIMES} times or more"


def text_of_examples(facts: dict[str, Any], coloured: bool) -> str:
    """The facts for reading; what is learnt is green on a terminal, else in [[double brackets]]."""
    tokens, counts = facts["tokens"], facts["examples"]
    lines = [
        facts["path"],
        f"  examples   {counts['train']:,} for training, {counts['validation']:,} for validation",
        f"  tokens     {tokens['least']:,} to {tokens['most']:,}, median {tokens['median']:,}, 95% "
        f"up to {tokens['p95']:,}; rows have {facts['seq_len']:,}",
        f"  learnt     {facts['learnt_share']:.1%} of the tokens, "
        + ("green below" if coloured else "in [[double brackets]] below"),
        *(f"  left out   {line}" for line in facts["left_out"]),
        *(f"  warning    {line}" for line in facts["warnings"]),
    ]
    for example in facts["rendered"]:
        tools = f", tools: {', '.join(example['tools'])}" if example["tools"] else ""
        learnt = f"{example['tokens']:,} tokens, {example['learnt']:,} learnt"
        lines += ["", f"--- {example['id']}: {learnt}{tools}"]
        lines.append("".join(_marked(run, coloured) for run in example["runs"]))
    return "\n".join(lines)


def _marked(run: dict[str, Any], coloured: bool) -> str:
    text = run["text"] + (f" (weight {run['weight']:g})" if "weight" in run else "")
    if coloured:
        # Control characters of the data must not reach the terminal.
        text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
        return f"{_GREEN if run['learnt'] else _DIM}{text}{_PLAIN}"
    return f"[[{text}]]" if run["learnt"] else text
