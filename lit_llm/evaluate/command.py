"""``lit_llm evaluate CKPT --tasks NAME ...``: lm-eval on a checkpoint of any format."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lit_llm
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError
from lit_llm.evaluate.results.aligned import aligned
from lit_llm.evaluate.results.keep import Keeper
from lit_llm.evaluate.run import load_tasks, metric_rows, one_line, run_task
from lit_llm.evaluate.tasks import CODE_TASKS, LOCAL_TASKS
from lit_llm.io.streams import json_text
from lit_llm.models.hub.checkpoint import choose_device, load_model
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import Number, Range

if TYPE_CHECKING:
    from lit_llm.evaluate.box.humaneval import CodeRuns
    from lit_llm.evaluate.reasoning import Reasoning

RANGES: dict[str, Range] = {
    "limit": Range(1, 1e9), "num_fewshot": Range(0, 1e4), "batch_size": Range(1, 1e6),
    "max_batch_tokens": Range(1, 1e9), "check_batching": Range(1, 1e9),
    "reasoning_tokens": Range(1, 1e9), "answer_tokens": Range(1, 1e9), "repeats": Range(1, 1000),
}  # fmt: skip
"""Ranges of the command's numbers."""
_MERGED = ("results", "versions", "n-shot", "n-samples", "samples")


def evaluate_main(args: list[str]) -> None:
    """Parse ``args``, run the tasks, and print a table or JSON.

    Raises:
        UserError: a wrong argument, or a task, checkpoint or device that does not exist; a --name
            with other results; a task that failed, after the results of the others.
    """
    settings = _parser().parse_args(args)
    for option in ("system", "chat_template_kwargs"):
        if getattr(settings, option) is not None and not settings.apply_chat_template:
            raise UserError(f"--{option} needs --apply_chat_template")
    device = choose_device(settings.device)
    code = code_runs(settings.tasks, settings.run_code, settings.repeats)
    # Load the tasks before the model, so that mistakes in their names are reported at once.
    tasks = load_tasks(settings.tasks, settings.include, code=code)

    from lit_llm.evaluate.harness import HarnessLM
    from lit_llm.evaluate.scoring.kept import KeptParts

    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model, tokenizer = load_model(settings.checkpoint, adapter=settings.adapter, dtype=dtype)
    fingerprint = weights_fingerprint(model)
    parts = None
    if settings.resume is not None:
        what = [fingerprint, tokenizer.fingerprint(), str(model.embed.weight.dtype), device.type,
                lit_llm.__version__, torch.__version__]  # fmt: skip
        parts = KeptParts(Path(settings.resume).expanduser(), " ".join(what))
    lm = HarnessLM(
        model.to(device),
        tokenizer,
        batch_size=settings.batch_size,
        max_batch_tokens=settings.max_batch_tokens,
        check_batching=settings.check_batching or 0,
        pack=True,
        kept=parts,
        reasoning=_reasoning(settings, tokenizer),
        template_arguments=settings.chat_template_kwargs,
        progress=True,
    )
    versions = {
        "lit_llm": lit_llm.__version__,
        **{name: version(name) for name in ("lm_eval", "torch")},
    }
    keeper = Keeper(settings, model, tokenizer, tasks, fingerprint, versions)
    found: dict[str, dict[str, Any]] = {key: {} for key in _MERGED}
    rows, failed, reused = [], [], []
    for name, task in tasks.items():
        results: dict[str, Any] | None = None
        if (kept := keeper.kept(name)) is not None and not settings.log_samples:
            reused.append(name)
            rows += kept["rows"]
            for key in _MERGED:
                found[key] |= kept["lm_eval"].get(key, {})
            continue
        try:
            results = run_task(
                lm,
                task,
                limit=settings.limit,
                num_fewshot=settings.num_fewshot,
                apply_chat_template=settings.apply_chat_template,
                system=settings.system,
                log_samples=True,
            )
            ends = lm.endings if lm.reasoning is not None else {}
            more_rows = ending_rows(ends, set(results["results"]))
            keeper.keep(name, results, more_rows)
        # A task runs foreign code. The results of the others took long.
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else one_line(error)
            failed.append(f"task {name}: {said}")
        for told in lm.told():
            print(f"{name}: {told}", file=sys.stderr)
        if results is None:
            continue
        if parts is not None and parts.taken:
            print(f"{name}: {parts.taken:,} finished parts taken from {settings.resume}",
                  file=sys.stderr)  # fmt: skip
            parts.taken = 0
        rows += metric_rows(results) + more_rows
        for key in _MERGED:
            found[key] |= results.get(key, {})
    if not rows and failed:
        raise UserError("; ".join(failed))
    if reused:
        print(
            f"{', '.join(reused)}: reused from {keeper.evaluation.folder}, where the same model "
            "and settings were measured",
            file=sys.stderr,
        )
    if settings.log_samples:
        keeper.write_samples(found["samples"])
    if parts is not None and not failed:
        parts.remove()
    if settings.json is not None:
        _write_json(settings.json, {
            "checkpoint": str(settings.checkpoint),
            "adapter": settings.adapter,
            "weights_sha256": fingerprint,
            "tokenizer_sha256": tokenizer.fingerprint(),
            "command": shlex.join(["lit_llm", "evaluate", *args]),
            "package_versions": versions,
            "device": str(device),
            "metrics": rows,
            "answers": {name: dict(ends) for name, ends in lm.endings.items()},
            **{key: found[key] for key in _MERGED if key != "samples" or settings.log_samples},
        })  # fmt: skip
    if settings.json != "-":
        print(table(rows))
        if settings.json is not None:
            print(f"wrote {settings.json}")
        print(f"results and items: {keeper.evaluation.folder}")
    if failed:
        raise UserError("; ".join(failed))


def code_runs(names: Sequence[str], run_code: str | None, repeats: int | None) -> CodeRuns | None:
    """Open the box for the code tasks among ``names``, and print what it consists of.

    Args:
        names: tasks.
        run_code: "box", "unsafe" or None, see --run_code.
        repeats: samples per question.

    Returns:
        None if no task runs programs.

    Raises:
        UserError: a code task that was not allowed, a box that this machine does not offer, or
            ``repeats`` without a code task.
    """
    coded = [name for name in names if name in CODE_TASKS]
    if not coded:
        for option, given in (("--run_code", run_code), ("--repeats", repeats)):
            if given is not None:
                raise UserError(f"{option} is for tasks that run programs: {', '.join(CODE_TASKS)}")
        return None
    if run_code is None:
        raise UserError(f"{coded[0]} runs programs that the model writes: allow it with --run_code")

    from lit_llm.evaluate.box.box import Box
    from lit_llm.evaluate.box.humaneval import CodeRuns

    box = Box(unsafe=run_code == "unsafe")
    print(box, file=sys.stderr)
    return CodeRuns(box, repeats or 1)


def _reasoning(settings: argparse.Namespace, tokenizer: Tokenizer) -> Reasoning | None:
    """The markers that the user names, or those of the chat template."""
    from lit_llm.evaluate.reasoning import Reasoning

    limits = settings.reasoning_tokens, settings.answer_tokens
    found = None
    if settings.reasoning is not None:
        found = Reasoning(*settings.reasoning)
    elif settings.apply_chat_template:
        chat = ChatFormat(tokenizer)
        prompt = chat.render(
            [{"role": "user", "content": "?"}], True, settings.chat_template_kwargs or {}
        )
        found = Reasoning.of_template(chat.template, prompt)
    if found is not None:
        return dataclasses.replace(found, reasoning_tokens=limits[0], answer_tokens=limits[1])
    if limits != (None, None):
        raise UserError("--reasoning_tokens and --answer_tokens need reasoning: see --reasoning")
    return None


def ending_rows(
    endings: Mapping[str, Mapping[str, int]], tasks: Collection[str]
) -> list[dict[str, Any]]:
    """Rows as of `metric_rows`: shares of answers that did not end well, see `ENDINGS`."""
    from lit_llm.evaluate.reasoning import ENDINGS

    return [
        {"task": task, "metric": ending, "value": ends.get(ending, 0) / ends["asked"],
         "stderr": None, "n": ends["asked"]}
        for task, ends in endings.items() if task in tasks for ending in ENDINGS
    ]  # fmt: skip


def weights_fingerprint(model: Transformer) -> str:
    """sha256 (hex) of the model's tensors, ordered by name: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format `metric_rows` in aligned columns."""
    cells = [["task", "metric", "value", "stderr", "n"]]
    for row in rows:
        stderr = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
        cells.append(
            [row["task"], row["metric"], f"{row['value']:.4f}", stderr, str(row["n"] or "")]
        )
    return aligned(cells, left=2)


def _write_json(target: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    if target == "-":
        print(json_text(json.loads(text), indent=2))
        return
    file = Path(target).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written ({error.strerror})") from None


def _json_object(text: str) -> dict[str, Any]:
    """The ``type`` of an option that takes a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object")
    return value


def _parser() -> Parser:
    parser = Parser(
        prog="lit_llm evaluate",
        description=f"Run lm-eval tasks on a checkpoint. Without a hub: "
        f"{', '.join([*LOCAL_TASKS, *CODE_TASKS])}.",
    )
    add = parser.add_argument
    add("checkpoint", help="Hugging Face directory, .gguf file, run folder or .ckpt file")
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME",
        help="local tasks, those of --include, or lm-eval's own",
    )
    add(
        "--include",
        nargs="+",
        default=[],
        metavar="PATH",
        help="folders of lm-eval YAML files, or such files",
    )
    add(
        "--limit",
        type=Number(int, RANGES["limit"]),
        metavar="N",
        help="only the first N documents of a task",
    )
    add(
        "--num_fewshot",
        type=Number(int, RANGES["num_fewshot"]),
        metavar="N",
        help="worked examples before each question",
    )
    add("--apply_chat_template", action="store_true", help="ask in the model's chat format")
    add("--system", metavar="TEXT", help="system message before each question")
    add(
        "--chat_template_kwargs",
        type=_json_object,
        metavar="JSON",
        help="switches of the chat template, such as '{\"enable_thinking\": false}'",
    )
    add(
        "--reasoning",
        nargs=2,
        metavar=("OPEN", "CLOSE"),
        help="texts around the reasoning before an answer; default: the chat template's own",
    )
    add(
        "--reasoning_tokens",
        type=Number(int, RANGES["reasoning_tokens"]),
        metavar="N",
        help="most tokens of reasoning; an answer cut in it counts as unanswered",
    )
    add(
        "--answer_tokens",
        type=Number(int, RANGES["answer_tokens"]),
        metavar="N",
        help="most tokens after the reasoning",
    )
    add(
        "--batch_size",
        type=Number(int, RANGES["batch_size"]),
        metavar="N",
        help="most answers generated at once; default: 64",
    )
    add(
        "--max_batch_tokens",
        type=Number(int, RANGES["max_batch_tokens"]),
        metavar="N",
        help="most tokens in a forward pass that scores; default: from the free memory",
    )
    add(
        "--check_batching",
        type=Number(int, RANGES["check_batching"]),
        metavar="N",
        help="score N requests of each task alone too, and print the largest difference",
    )
    add(
        "--resume",
        metavar="DIR",
        help="keep finished requests in DIR until the end; a killed evaluation goes on from them",
    )
    add(
        "--adapter",
        metavar="DIR",
        help="LoRA adapter (a PEFT directory) to put onto the checkpoint",
    )
    add(
        "--json",
        metavar="FILE",
        help="write results, versions and hashes; - prints them instead of the table",
    )
    add(
        "--run_code",
        nargs="?",
        const="box",
        choices=["box", "unsafe"],
        help="allow tasks that run programs which the model writes, in a box; unsafe: also where "
        "this machine offers limits alone",
    )
    add(
        "--repeats",
        type=Number(int, RANGES["repeats"]),
        metavar="N",
        help="samples of each program, for pass@1 to pass@N; default: 1, greedy",
    )
    add(
        "--name",
        metavar="NAME",
        help="folder of the results; default: the run's name, with a number if it is taken",
    )
    add(
        "--output",
        type=Path,
        default=Path("evaluations"),
        metavar="DIR",
        help="folder of all results",
    )
    add(
        "--cluster_by",
        metavar="FIELD",
        help="field of the documents that items which depend on each other share, such as passage",
    )
    add(
        "--log_samples",
        action="store_true",
        help="also write every prompt and answer, in lm-eval's form; into --json FILE too",
    )
    add(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, ...; auto: CUDA if there is one, else CPU",
    )
    add(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights; auto: the checkpoint's",
    )
    return parser
