"""``lit_llm plan``: days, dollars and memory of a run, as text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.io import numbers
from lit_llm.io.metrics import NAME, parse_metrics
from lit_llm.settings.arguments import Parser
from lit_llm.settings.config_files import split_config

if TYPE_CHECKING:
    from lit_llm.plan.solve import Plan

_SUFFIX = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def number(text: str) -> float:
    """A number with an optional suffix: 70e9, 70B, 2T, 1.5M, 2_700_000."""
    found = re.fullmatch(
        r"([+-]?[\d_]*\.?\d+(?:[eE][+-]?\d+)?|nan|inf)([KMBGT]?)", text.strip(), re.IGNORECASE
    )
    if found is None:
        raise ValueError(text)
    return float(found[1].replace("_", "")) * _SUFFIX[found[2].upper()]


def plan_main(args: list[str]) -> None:
    """Parse ``args`` and print the plan.

    Raises:
        UserError: a mistake in the arguments, or a plan that is impossible.
    """
    parser = Parser(
        prog="lit_llm plan",
        description="Days, dollars and gigabytes of a run. Give any two or three of model, tokens "
        "and means; the rest is found. Numbers take K, M, B and T. --config may also be a "
        "training config or its name.",
    )
    _add_options(parser)
    options = parser.parse_args(_with_training_config(args))
    given = _arguments(options)
    said: list[str] = []
    facts: dict[str, Any] = {}
    if options.items is not None:
        from lit_llm.plan.cost import annotation

        work = annotation(options.items, options.minutes, options.overlap, options.wage)
        facts |= {"annotation_hours": work.hours, "annotation_usd": work.usd}
        said.append(_annotation_line(options, work.hours, work.usd))
    if options.items is None or any(
        given.get(key) for key in ("params", "config", "tokens", "budget", "gpu_hours")
    ):
        from lit_llm.plan.solve import advise, plan

        if options.advise:
            if "gpu" in given:
                raise UserError("--advise compares all accelerators: leave --gpu out")
            plans, refused = advise(**given)
            facts |= {"plans": [dataclasses.asdict(p) for p in plans], "refused": refused}
            said.append(_advice(plans, refused))
        else:
            result = plan(**given)
            facts |= dataclasses.asdict(result)
            said.append(_table(result))
    print(json.dumps(facts, indent=1) if options.json else "\n\n".join(said))


def _add_options(parser: Parser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--params", type=number, metavar="N", help="parameters that a token passes")
    model.add_argument("--total_params", type=number, metavar="N", help="with all experts")
    model.add_argument(
        "--model", metavar="PRESET", help="a preset's name or a model folder, in place of --params"
    )
    model.add_argument(
        "--lora", action="store_true", help="low-rank finetuning: the weights are frozen"
    )
    model.add_argument(
        "--quantize",
        choices=["nf4", "fp4", "int8"],
        help="with --lora: how the frozen weights are held",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--tokens", type=number, metavar="N", help="trained on, repeats counted")
    data.add_argument(
        "--tokens_per_param", type=number, metavar="R", help="in place of the compute-optimal ratio"
    )
    data.add_argument(
        "--inference_tokens",
        type=number,
        metavar="N",
        help="that it will serve: a smaller model then",
    )
    data.add_argument("--seq_len", type=int, default=4096, metavar="N", help="default %(default)s")
    data.add_argument("--batch_tokens", type=number, metavar="N", help="of an optimizer step")
    means = parser.add_argument_group("means")
    means.add_argument(
        "--gpu", metavar="NAME", help="default h100; see lit_llm/models/accounting/hardware.csv"
    )
    means.add_argument("--gpus", type=int, metavar="N")
    means.add_argument("--days", type=number, metavar="N")
    means.add_argument("--budget", type=number, metavar="USD")
    means.add_argument("--gpu_hours", type=number, metavar="N")
    means.add_argument(
        "--usd_per_hour",
        type=number,
        metavar="USD",
        help="of one GPU, in place of the typical price",
    )
    means.add_argument("--precision", choices=["bf16", "fp32", "fp8"], default="bf16")
    means.add_argument(
        "--optimizer", choices=["adamw", "muon_adamw", "adamw_8bit"], default="adamw"
    )
    means.add_argument(
        "--calibrate", type=Path, metavar="RUN", help="run folder whose measured MFU is taken"
    )
    means.add_argument(
        "--leave_out",
        metavar="FAMILY",
        help="published runs not to be fitted to: Meta, Google, ...",
    )
    people = parser.add_argument_group("annotation")
    people.add_argument(
        "--items", type=number, metavar="N", help="to be written or judged by people"
    )
    people.add_argument(
        "--minutes", type=number, default=5.0, metavar="N", help="an item (default %(default)s)"
    )
    people.add_argument(
        "--overlap",
        type=number,
        default=1.0,
        metavar="N",
        help="people an item (default %(default)s)",
    )
    people.add_argument(
        "--wage", type=number, default=20.0, metavar="USD", help="an hour (default %(default)s)"
    )
    parser.add_argument("--advise", action="store_true", help="compare all accelerators")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `plan` from the parsed options."""
    given = {
        key: getattr(options, key)
        for key in ("params", "total_params", "tokens", "tokens_per_param", "inference_tokens",
                    "seq_len", "batch_tokens", "gpu", "gpus", "days", "budget", "gpu_hours",
                    "usd_per_hour", "precision", "optimizer", "lora", "quantize", "leave_out")
    }  # fmt: skip
    if options.gpu is None:
        del given["gpu"]  # `plan` has its own default
    if options.model is not None:
        given["config"] = _model_config(options.model)
    if options.calibrate is not None:
        given["mfu"] = measured_mfu(options.calibrate)
    return given


def _model_config(name: str) -> Any:
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.hub.locate import locate

    if name.lstrip().startswith("{"):
        return TransformerConfig.from_dict(json.loads(name))
    found = locate(name)
    if not found.exists():
        return TransformerConfig.from_preset(name)
    final = found / "final"  # the exported model of a run folder
    return TransformerConfig.from_pretrained(final if final.is_dir() else found)


def measured_mfu(run: Path) -> float:
    """Median MFU in a run's metrics.csv. Raises UserError if there is none."""
    import statistics

    file = run / NAME
    try:
        text = file.read_text(encoding="utf-8")
        values = [float(cell) for cell in parse_metrics(text).column("mfu").values()]
    except (OSError, ValueError) as error:
        raise UserError(f"calibrate={run}: {file} is not a run's metrics ({error})") from None
    if not values:
        raise UserError(
            f"calibrate={run}: {file} has no mfu; it is measured where the peak is known, not on "
            f"CPUs"
        )
    return statistics.median(values)


def _with_training_config(args: list[str]) -> list[str]:
    """Replace a training config in ``args`` by planner options; given options take precedence."""
    files, rest = split_config(args)
    if len(files) != 1 or not files[0]:
        return args
    from lit_llm.settings.presets import OF_RUNS, find_config
    from lit_llm.settings.yaml_file import read_yaml

    content = read_yaml(find_config(files[0], OF_RUNS))
    if not any(isinstance(content.get(key), dict) for key in ("model", "data")):
        return args
    model, data = (_init_args(content.get(key)) for key in ("model", "data"))
    network = model.get("transformer") or model.get("init_from")
    if isinstance(network, dict):
        network = json.dumps(
            {**network, **({"vocab_size": data["vocab_size"]} if "vocab_size" in data else {})}
        )
    trainer = content.get("trainer") or {}
    devices = trainer.get("devices")
    said = {
        "--model": network, "--tokens": data.get("tokens"), "--seq_len": data.get("seq_len"),
        "--batch_tokens": data.get("global_batch_tokens"),
        # Defaults of the modules: Muon for pretraining, AdamW for finetuning.
        "--optimizer": model.get(
            "optimizer", "adamw" if "SFT" in str(content.get("model")) else "muon_adamw"
        ),
        "--gpus": devices * trainer.get("num_nodes", 1) if isinstance(devices, int) else None,
    }  # fmt: skip
    if said["--tokens"] is None and not {"--tokens", "--days", "--budget", "--gpu_hours"} & set(
        rest
    ):
        raise UserError(
            f"--config {files[0]}: its number of training tokens depends on its data; give "
            f"--tokens N"
        )
    known = ["--lora"] if model.get("lora") and "--lora" not in rest else []
    for option, value in said.items():
        if value is not None and option not in rest:
            known += [option, str(value)]
    return known + rest


def _init_args(part: Any) -> dict[str, Any]:
    """Arguments of a class in a training config, with or without class_path."""
    part = part if isinstance(part, dict) else {}
    return dict(
        part.get("init_args") or {key: value for key, value in part.items() if key != "class_path"}
    )


def _table(p: Plan) -> str:
    size = f"{numbers.number(p.params)} parameters"
    if p.total_params > p.params * 1.0001:
        size = f"{numbers.number(p.params)} active of {numbers.number(p.total_params)} parameters"
    rows = [
        ("model", size),
        ("data", f"{numbers.number(p.tokens)} tokens, {p.tokens / p.params:.3g} a parameter; "
                 f"{p.corpus_gb:,.0f} GB on disk, read at {p.data_mb_per_second:.3g} MB/s"),
        ("compute", f"{p.flops:.3g} FLOPs; steps of {numbers.number(p.batch_tokens)} tokens"),
        ("hardware", f"{p.gpus:,} x {p.gpu}"),
        ("", ""),
        ("GPU-hours", _range(p.gpu_hours, p.gpu_hours_low, p.gpu_hours_high)),
        ("days", _range(p.days, p.days_low, p.days_high)),
        ("dollars", _dollars(p)),
        ("speed", f"{p.tokens_per_second:,.0f} tokens/s, {p.mfu:.1%} of peak over the whole run"),
        ("memory", f"{p.memory_gb:.1f} of {p.gpu_memory_gb:.0f} GB on each GPU, at "
                   f"{p.micro_batch_size} sequence{'s' * (p.micro_batch_size > 1)} of {p.seq_len} "
                   f"and {p.accumulation} micro-batch{'es' * (p.accumulation > 1)} a step"),
        ("layout", p.parallelism),
        ("because", p.parallelism_reason),
        ("failures", f"one in {numbers.about(p.hours_between_failures)}; a checkpoint "
                     f"({p.checkpoint_gb:,.0f} GB) every "
                     f"{numbers.about(p.checkpoint_minutes / 60)} "
                     f"leaves {p.goodput:.1%} of the time for training"),
    ]  # fmt: skip
    if p.solved_for:
        rows.insert(4, ("found", p.solved_for))
    lines = [f"{name:10} {text}".rstrip() for name, text in rows]
    return "\n".join(
        [
            *lines,
            "",
            "ranges: 80% of published runs, of families that the fit had not seen, were in theirs",
        ]
    )


def _dollars(p: Plan) -> str:
    if p.usd is None or p.usd_low is None or p.usd_high is None:
        return f"no price is known for {p.gpu}: give --usd_per_hour"
    spot = (
        f"; {numbers.whole_or_three_digits(p.usd_spot)} at the lowest price seen"
        if p.usd_spot is not None
        else ""
    )
    return f"{_range(p.usd, p.usd_low, p.usd_high)}   at ${p.usd_per_hour:g} a GPU-hour{spot}"


def _advice(plans: list[Plan], refused: dict[str, str]) -> str:
    lines = [f"{'GPU':16}{'number':>8}{'days':>10}{'dollars':>16}{'MFU':>7}{'GB':>7}  layout"]
    fastest = min(plans, key=lambda p: p.days).gpu
    for p in plans:
        usd = "unknown" if p.usd is None else f"{p.usd:,.0f}"
        note = "  <- fastest" if p.gpu == fastest else ""
        numbers = f"{p.gpus:8,}{p.days:10.3g}{usd:>16}{p.mfu:7.1%}{p.memory_gb:7.0f}"
        lines.append(f"{p.gpu:16}{numbers}  {p.parallelism}{note}")
    return "\n".join(lines + [f"{name:16}cannot: {why}" for name, why in refused.items()])


def _annotation_line(options: argparse.Namespace, hours: float, usd: float) -> str:
    return (
        f"annotation {numbers.number(options.items)} items x {options.minutes:g} min x "
        f"{options.overlap:g} people: {hours:,.0f} hours, ${usd:,.0f} at ${options.wage:g} an hour"
    )


def _range(value: float, low: float, high: float) -> str:
    middle, least, most = map(numbers.whole_or_three_digits, (value, low, high))
    return f"{middle}   ({least} to {most})"
