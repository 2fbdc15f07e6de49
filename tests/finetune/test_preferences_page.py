"""The commands of docs/preferences.md run, from comparisons to a reward model, on a tiny base."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_llm import Transformer
from lit_llm.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "preferences.md"
SMALL = ("--data.seq_len", "192", "--data.micro_batch_size", "2", "--data.pairs_per_step", "8",
         "--data.validation_fraction", "0.2", "--trainer.max_steps", "2",
         "--trainer.accelerator", "cpu")  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.mark.usefixtures("cache_dir")
def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_base: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    random_base(Path("runs/mine/final"), 0.2, hidden_size=32, num_layers=2, num_heads=2,
                max_seq_len=192)  # fmt: skip
    pairs = [{"prompt": f"Is {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(24)]
    thumbs = [{"prompt": f"Is {i}?", "completion": f"{i}", "label": i % 2 == 0} for i in range(24)]
    for name, rows in (("pairs", pairs), ("thumbs", thumbs)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for block in blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line)[1:]
            more = SMALL if words[0] == "fit" else ()
            assert main([*words, *more]) == 0, (line, capsys.readouterr().err[-2000:])
            ran += 1
    assert ran == 6
    assert isinstance(Transformer.from_pretrained("runs/dpo/final"), Transformer)
    (program,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    scores = re.search(r"tensor\(\[(.*)\]\)", capsys.readouterr().out)
    assert scores is not None and len(scores[1].split(",")) == 2
    assert torch.is_tensor(names["score_texts"](names["model"], names["texts"]))  # type: ignore[operator]
