"""``lit_llm launch``: SLURM job file that saves a fit before the time limit and requeues it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from lit_llm.errors import Preempted, UserError
from lit_llm.io.streams import say
from lit_llm.settings.arguments import Parser, with_underscores
from lit_llm.settings.config_files import split_config
from lit_llm.settings.presets import OF_RUNS, config_name, find_config
from lit_llm.settings.ranges import Number, Range
from lit_llm.settings.shell import command_line

RANGES: dict[str, Range] = {
    "nodes": Range(1, 1e5), "gpus": Range(1, 1e3), "grace": Range(1, 1e6),
}  # fmt: skip
"""Ranges of the command's numbers."""
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


def launch_main(args: list[str]) -> None:
    """Write the job file that ``args`` describe.

    Raises:
        UserError: a mistake in the arguments.
    """
    parser = Parser(
        prog="lit_llm launch",
        description="Write a job file for a scheduler. After -- comes the command to run: fit "
        "--config FILE ...",
    )
    parser.add_argument("--slurm", action="store_true", required=True, help="for sbatch")
    parser.add_argument(
        "--nodes",
        type=Number(int, RANGES["nodes"]),
        default=1,
        metavar="N",
        help="default %(default)s",
    )
    parser.add_argument(
        "--gpus",
        type=Number(int, RANGES["gpus"]),
        default=8,
        metavar="N",
        help="of a node, one process each; default 8",
    )
    parser.add_argument(
        "--time",
        default="24:00:00",
        help="limit that SLURM sets, as sbatch takes it; default %(default)s",
    )
    parser.add_argument("--grace", type=Number(int, RANGES["grace"]), default=180,
                        metavar="SECONDS",
                        help="before the limit the run is told to save: more than an optimizer "
                             "step, a validation and a save take together; "
                             "default %(default)s")  # fmt: skip
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION",
                        help="another option of sbatch, e.g. --sbatch partition=gpu; may be "
                             "repeated")  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE", help="default: the config's name, .sbatch added"
    )
    if "--" not in args:
        if {"-h", "--help"} & set(args):
            parser.parse_args(args)
        raise UserError(
            "give the command to run after --, e.g. lit_llm launch --slurm -- fit --config FILE"
        )
    at = args.index("--")
    options, command = parser.parse_args(args[:at]), with_underscores(args[at + 1 :])
    if command[:1] != ["fit"]:
        raise UserError(
            f"after -- comes fit and its arguments, got {' '.join(command[:1]) or 'nothing'}"
        )
    if not _TIME.fullmatch(options.time):
        raise UserError(
            f"--time {options.time}: write it as sbatch takes it, e.g. 24:00:00 or 2-12:00:00"
        )
    for option in options.sbatch:
        # With %1, the tasks run one after another and each resumes the run.
        if option.removeprefix("--").startswith("array=") and not option.endswith("%1"):
            raise UserError(
                f"--sbatch {option}: its tasks would train in one folder at the same time; end it "
                "with %1 to have them go on one after the other, or write a job file for each run"
            )
    for key in ("--trainer.num_nodes", "--trainer.devices", "--ckpt_path"):
        if _value(command, key) is not None:
            raise UserError(
                f"{key}: the job file sets it; leave it out, and give --nodes and --gpus"
            )
    configs, _ = split_config(command)
    for config in configs:
        find_config(config, OF_RUNS)  # checked now, not when the job starts
    name = config_name(configs[0]) if configs else "run"
    if _value(command, "--trainer.default_root_dir") is None:
        command += ["--trainer.default_root_dir", f"runs/{name}"]
    file = Path(options.output or f"{name}.sbatch")
    script = _script(
        name, command, options.nodes, options.gpus, options.time, options.grace, options.sbatch
    )
    try:
        file.write_text(script, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {file}: {error.strerror}") from None
    say(f"wrote {file}; submit it with: {command_line('sbatch', file)}")


def _value(command: list[str], key: str) -> str | None:
    """Value of ``key`` in ``command``, as the next word or after "="; the last one counts."""
    found = None
    for word, following in zip(command, [*command[1:], None], strict=True):
        if word == key:
            found = following
        elif word.startswith(f"{key}="):
            found = word.partition("=")[2]
    return found


def _script(
    name: str, command: list[str], nodes: int, gpus: int, time: str, grace: int, more: list[str]
) -> str:
    header = {
        "job-name": name, "nodes": nodes, "ntasks-per-node": gpus, "gpus-per-node": gpus,
        "time": time,
        # SLURM signals every process, not this script. Each process finishes its optimizer step,
        # and the step is saved.
        "signal": f"TERM@{grace}", "output": f"{name.replace('%', '%%')}-%j.log",
        "open-mode": "append", "chdir": Path.cwd(),
    }  # fmt: skip
    lines = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in header.items()]
    lines += ["#SBATCH --requeue", *(f"#SBATCH --{option.removeprefix('--')}" for option in more)]
    words = " ".join(shlex.quote(word) for word in [sys.executable, "-m", "lit_llm", *command])
    return f"""#!/bin/bash
{chr(10).join(lines)}

# When one process ends, srun waits two minutes before it kills the others. After SIGTERM, the
# processes of a run save and end with status {Preempted.status}, one after another. srun reports
# the highest status, so a process that it kills would hide that status.
srun --kill-on-bad-exit=0 --wait=120 {words} \\
    --trainer.num_nodes {nodes} --trainer.devices {gpus} --ckpt_path auto
status=$?
if [ $status -eq {Preempted.status} ]; then  # saved, but not finished
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""
