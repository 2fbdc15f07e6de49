"""Conditions of a build: ``--gate 'task.metric >= 0.5'``, ``--gate 'not worse than A by 0.01'``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_llm.errors import UserError
from lit_llm.evaluate.compare.claims import MEAN, Claim
from lit_llm.evaluate.compare.contenders import Contender

_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"
_VALUE = re.compile(rf"\s*(\S+?)\s*(>=|<=|>|<)\s*{_NUMBER}\s*")
_NOT_WORSE = re.compile(rf"\s*(?:(\S+)\s+)?not worse than (\S+) by {_NUMBER}\s*")


@dataclass(frozen=True)
class Outcome:
    """What became of a gate: its text, whether it passed, and the values."""

    gate: str
    passed: bool
    why: str


def judge(gate: str, contenders: Sequence[Contender], claims: Sequence[Claim]) -> Outcome:
    """Judge one condition.

    - ``task.metric >= x`` (also <=, >, <): the value of every contender but the first, or of the
      only one.
    - ``not worse than NAME by x``: every claim of the table about the first contender, called NAME
      or A, shows that the other one is not worse by x or more (one-sided test at 5%).
      ``task.metric not worse than ...`` asks for that claim alone.

    Raises:
        UserError: another condition, or an unknown task, metric or name.
    """
    if found := _VALUE.fullmatch(gate):
        return _value(gate, found[1], found[2], float(found[3]), contenders)
    if found := _NOT_WORSE.fullmatch(gate):
        return _not_worse(gate, found[1], found[2], float(found[3]), contenders, claims)
    raise UserError(
        f"--gate {gate!r}: is not a condition; write 'TASK.METRIC >= 0.5' or "
        "'not worse than A by 0.01'"
    )


def _value(
    gate: str, name: str, sign: str, wanted: float, contenders: Sequence[Contender]
) -> Outcome:
    passed, said = True, []
    for contender in contenders[1:] or contenders:
        value = _mean_of_runs(gate, name, contender)
        passed = passed and _COMPARED[sign](value, wanted)
        said.append(f"{contender.name} has {value:.4g}")
    return Outcome(gate, passed, ", ".join(said))


def _mean_of_runs(gate: str, name: str, contender: Contender) -> float:
    task, _, metric = name.rpartition(".")
    if task not in contender.tasks:
        raise UserError(
            f"--gate {gate!r}: {contender.name} has no task {task!r}; it has "
            f"{', '.join(contender.tasks)}"
        )
    metrics = contender.tasks[task]["metrics"]
    if metric not in metrics:
        raise UserError(
            f"--gate {gate!r}: {task} has no metric {metric!r}; it has {', '.join(metrics)}"
        )
    values = [run.tasks[task]["metrics"][metric]["value"] for run in contender.runs]
    return float(sum(values) / len(values))


def _not_worse(
    gate: str,
    which: str | None,
    name: str,
    margin: float,
    contenders: Sequence[Contender],
    claims: Sequence[Claim],
) -> Outcome:
    reference = contenders[0].name
    if name not in (reference, "A"):
        raise UserError(
            f"--gate {gate!r}: everything is compared with the first evaluation, {reference}; "
            f"name it, or A"
        )
    asked = [one for one in claims if one.task != MEAN]
    if which is not None:
        asked = [one for one in asked if f"{one.task}.{one.metric}" == which]
    if not asked:
        known = ", ".join(f"{one.task}.{one.metric}" for one in claims if one.task != MEAN)
        raise UserError(
            f"--gate {gate!r}: nothing is compared under {which or 'any name'}; "
            f"compared are {known or 'none: name two evaluations'}"
        )
    said = [
        f"{one.other} in {one.task}.{one.metric}: {one.difference:+.4g} "
        f"({one.interval[0]:+.4g} to {one.interval[1]:+.4g})"
        for one in asked
        if not one.not_worse_by(margin)
    ]
    if not said:
        return Outcome(gate, True, f"shown for all {len(asked)}")
    return Outcome(gate, False, f"not shown for {'; '.join(said)}")
