"""One of each page that lit_llm writes, with ordinary and with hostile contents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lit_llm.corpus.build import build
from lit_llm.corpus.card.page import write_page
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.reading.sources import Source
from lit_llm.report.html import write_report

FakeRun = Callable[..., Path]
Maker = Callable[[Path, FakeRun], Path]
UDHR = Path(__file__).parents[1] / "corpus" / "udhr.jsonl"
HOSTILE = "\u202eevil\u2066 </script><img src=x onerror=\"document.title='owned'\">" + "W" * 300


def _change(folder: Path, **facts) -> None:
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**info, **facts}), encoding="utf-8")


def _finetuned(folder: Path) -> Path:
    counts = {"examples": 3, "tokens": 900, "supervised_tokens": 300, "truncated": 1}
    card = {
        "kind": "instructions",
        "splits": {"train": counts, "validation": counts},
        "dropped": {"empty": 2},
    }
    (folder / "datacard.json").write_text(json.dumps(card), encoding="utf-8")
    questions = [
        {"prompt": f"Question {i}?", "before": "yes", "after": "no " * 60, "score_before": 1.0,
         "score_after": float(i != 1)}
        for i in range(3)
    ]  # fmt: skip
    change = {"n": 3, "before": 1.0, "after": 0.67, "change": -0.33, "low": -0.9, "high": 0.3}
    rehearsal = {"used": False, "share": 0.43, "tokens": 400, "own_tokens": 900}
    measured = {"step": 60, "kl": 0.02, "kl_tokens": 30, "changes": {"questions/score": change}}
    forgetting = {"steps": [measured], "items_step": 60, "questions": questions,
                  "rehearsal": rehearsal}  # fmt: skip
    (folder / "forgetting.json").write_text(json.dumps(forgetting), encoding="utf-8")
    points = [
        {
            "step": step,
            "task": "arc_easy",
            "metric": "acc_norm",
            "value": 0.25 + step / 1000,
            "stderr": 0.01,
        }
        for step in (0, 60)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
    return folder


def _hostile(folder: Path) -> Path:
    _change(folder, **dict.fromkeys(["name", "device", "command", "git"], HOSTILE))
    sample = {"step": 1, "prompt": HOSTILE, "text": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8")
    splits = {HOSTILE: {HOSTILE: {"documents": 1, "bytes": 9, "tokens": 3}}}
    (folder / "datacard.json").write_text(json.dumps({HOSTILE: HOSTILE, "splits": splits}))
    metrics = folder / "metrics.csv"
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    metrics.write_text(
        metrics.read_text().replace("logit_scale", quoted).replace("/stdlib-", f"/{'x' * 90}-")
    )
    return folder


def _corpus(folder: Path) -> Corpus:
    rows = [json.loads(line) for line in UDHR.open(encoding="utf-8")]
    lines = [
        json.dumps({"id": f"{row['language']}{i}", "text": row["text"],
                    "license": "MIT" if i % 3 else None,
                    "url": f"https://site{i % 9}.example.org/{i}"}, ensure_ascii=False)
        for i, row in enumerate(rows) if row["language"] in ("en", "de", "zh", "ar", "he")
    ]  # fmt: skip
    folder.mkdir(parents=True)
    file = folder / "texts.jsonl"
    file.write_text("\n".join([*lines, "{broken"]) + "\n", encoding="utf-8")
    source = Source("texts", (str(file),), domain="law")
    return build(CorpusConfig([source], vocab_size=300), folder / "corpus", progress=False)


def _hostile_card(folder: Path) -> Path:
    corpus = _corpus(folder)
    card = {**corpus.datacard, "examples_kept": [[HOSTILE, HOSTILE, HOSTILE]]}
    count = {"documents": 3, "bytes": 30, "tokens": 10}
    card |= {
        name: {HOSTILE: count, "ok": count}
        for name in ("domains", "hosts", "languages", "licenses")
    }
    card["splits"] = {"train": {HOSTILE: count}, "validation": {}}
    card["damaged"] = {"documents": 900, "named": [[HOSTILE, HOSTILE, HOSTILE]]}
    card["settings"] = {**card["settings"], "tokenizer": HOSTILE}
    write_page(card, folder / "hostile.html", HOSTILE)
    return folder / "hostile.html"


def _compared(folder: Path, fake_run: FakeRun) -> Path:
    earlier, folder = fake_run(folder / "earlier", steps=90), fake_run(folder / "run")
    resumed = {"step": 800, "command": "lit_llm fit --ckpt_path auto"}
    _change(folder, resumed=[resumed], parameters_trained=1_000_000)
    (folder / "events.jsonl").write_text('{"step": 1400, "event": "skipped", "steps": 2}\n')
    return write_report(folder, compare=earlier)


def _of_steps(steps: int) -> Maker:
    return lambda folder, fake_run: write_report(fake_run(folder, steps=steps, extra=False))


PAGES: dict[str, Maker] = {
    "pretrain": lambda folder, fake_run: write_report(fake_run(folder)),
    "compared": _compared,
    "finetune": lambda folder, fake_run: write_report(
        _finetuned(fake_run(folder, steps=60, extra=False))
    ),
    "few steps": _of_steps(3),
    "one step": _of_steps(1),
    "nothing yet": _of_steps(0),
    "hostile run": lambda folder, fake_run: write_report(_hostile(fake_run(folder, steps=20))),
    "corpus": lambda folder, fake_run: _corpus(folder).path / "datacard.html",
    "hostile corpus": lambda folder, fake_run: _hostile_card(folder),
}
"""Name -> what writes such a page below a folder, given conftest's ``write_fake_run``."""
