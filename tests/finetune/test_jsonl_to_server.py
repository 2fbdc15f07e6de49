"""The commands of docs/finetune.md from a JSONL file to a served model, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

PAGE = Path(__file__).parents[2] / "docs/finetune.md"


def commands() -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").split("## From a JSONL file to a served model")[1]
    block = section.split("```bash\n")[1].split("```")[0]
    return [shlex.split(line) for line in block.splitlines()]


@pytest.mark.slow
def test_from_a_jsonl_file_to_a_served_model(
    tmp_path: Path, random_base: Callable[..., Path]
) -> None:
    random_base(
        tmp_path / "path/to/the/base", None, hidden_size=64, num_layers=2, num_heads=4,
        max_seq_len=1024,
    )  # fmt: skip
    rows = [
        [{"role": "user", "content": f"What is in box {i}?"},
         {"role": "assistant", "content": "Nothing."}]
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"messages": messages}) + "\n" for messages in rows)
    )
    fit, inspect, serve = commands()
    program = [sys.executable, "-m"]
    for command in ([*fit, "--trainer.max_steps", "2"], inspect):
        done = subprocess.run(
            [*program, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    more = ["--port", "0", "--store", "store.sqlite", "--kv_gb", "0.1"]
    server = subprocess.Popen(
        [*program, *serve, *more], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = next(
            found[0] for line in server.stdout if (found := re.search(r"http://\S+/v1", line))
        )
        answer = httpx.post(
            f"{address}/chat/completions", timeout=120,
            json={"model": "mine", "messages": rows[0][:1], "max_tokens": 5, "temperature": 0},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
        assert answer.json()["usage"]["completion_tokens"] <= 5
    finally:
        server.terminate()
    assert server.wait(timeout=60) == 0
