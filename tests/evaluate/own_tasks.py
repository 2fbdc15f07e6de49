"""Tasks of a user's own, of four questions."""

from __future__ import annotations

import json
from pathlib import Path

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: {kind}
doc_to_text: question
doc_to_target: answer
{more}
"""


def write_task(
    folder: Path, name: str, kind: str = "loglikelihood", more: str = "metric_list: [{metric: acc}]"
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(
        json.dumps({"question": f"{i} and", "answer": f" {i + 1}"}) + "\n" for i in range(4)
    ))  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(
        TASK.format(
            name=name, data=folder / "data.jsonl", cache=folder / "arrow", kind=kind, more=more
        )
    )
    return file
