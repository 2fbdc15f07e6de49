"""A run folder as a small CPU run leaves it: made up, but with the shapes, gaps and noise of a real
one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SAMPLES = {
    100: ("(self, self self.\n        the in of  = = (\n", " to the the of a and the in\nthe of s "
                                                           "of  the is"),
    400: ("(self, name):\n        self.name = name\n        self.self = self\n        return "
          "self.name.name\n",
          " a function that is the same as the\nvalue of the same time. The value is the value of "
          "the"),
    1200: ("er(self, parser, name=None):\n        if name is None:\n            name = "
           "parser.name\n"
           "        self._parser = parser\n",
           " the value of the first argument. If the argument is not\ngiven, the default value is "
           "returned.\n\n"
           ".. versionadded:: 3.4\n"),
    2400: ("_header(self, stream, size=None):\n        \"\"\"Read the header of the stream and "
           "return its size.\"\"\"\n"
           "        if size is None:\n            size = self._default_size\n        header = "
           "stream.read(size)\n"
           "        if not header:\n            raise EOFError('stream ended')\n        return "
           "len(header)\n",
           " a new iterator over the lines of the file. If the file\nis closed, a ValueError is "
           "raised. The optional "
           "argument\n*encoding* gives the name of the encoding; it defaults to\nthe one of the "
           "locale.\n"),
}  # fmt: skip


def write_fake_run(
    folder: Path, steps: int = 2400, status: str = "finished", extra: bool = True
) -> Path:
    """``steps`` optimizer steps of 4,096 tokens, validation every 200; one loss spike, one nan,
    noisy speed."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    step = np.arange(1, steps + 1)
    share = step / 2400
    base = 2.05 + 6.3 * np.exp(-9 * share**0.55) + 0.25 * (1 - share)
    train = base + random.normal(0, 0.09, steps)
    lr = (
        0.02
        * np.minimum(1, step / 60)
        * np.where(share > 0.6, np.clip(1 - (share - 0.6) / 0.4, 0.02, 1), 1)
    )
    grad = np.exp(random.normal(-0.7, 0.25, steps)) * (1 + 6 * np.exp(-step / 40))
    if steps > 1500:
        train[1400], grad[1400] = 14.7, 61.0
        train[900] = np.nan
    rate = 31_500 + random.normal(0, 700, steps) - 6_000 * (step % 200 == 0)
    sources = (
        {"val_bits_per_byte/stdlib": 1.03, "val_bits_per_byte/stdlib-tests": 0.95} if extra else {}
    )
    columns = [
        "step",
        "tokens",
        "train_loss",
        "val_loss",
        "val_bits_per_byte",
        "lr",
        "grad_norm",
        "tokens_per_second",
    ]
    columns += [
        "mfu",
        "data_wait",
        "memory_gb",
        *sources,
        *(["weight_norm", "token_accuracy", "logit_scale"] * extra),
    ]
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for i in range(steps):
            row = {
                "step": step[i],
                "tokens": step[i] * 4096,
                "train_loss": f"{train[i]:.5f}",
                "lr": f"{lr[i]:.6g}",
            }
            row |= {
                "grad_norm": f"{grad[i]:.5f}",
                "tokens_per_second": f"{rate[i]:.1f}",
                "mfu": f"{rate[i] / 7e4:.4f}",
            }
            row |= {
                "data_wait": f"{abs(random.normal(0.004, 0.002)):.5f}",
                "memory_gb": f"{1.1 + 0.05 * (i > 50):.3f}",
            }
            if step[i] % 200 == 0 or step[i] == 20:
                val = base[i] + 0.06 + 0.05 * share[i]
                bits = val / 3.469 / np.log(2) * 1.9
                row |= {"val_loss": f"{val:.5f}", "val_bits_per_byte": f"{bits:.5f}"}
                row |= {name: f"{bits * factor:.5f}" for name, factor in sources.items()}
            if extra:
                row |= {
                    "weight_norm": f"{40 + 30 * share[i] ** 0.5:.4f}",
                    "logit_scale": f"{1 + 3 * share[i]:.4f}",
                }
                row |= {"token_accuracy": f"{0.62 - 0.07 * train[i]:.4f}"}
            table.writerow(row)
    seconds = float(np.sum(4096 / rate))
    run = {
        "name": "quickstart", "status": status, "started": "2026-11-23T19:10:00+00:00",
        "seconds": round(seconds, 1), "parameters": 5_243_904, "flops_per_token": 3.3e7,
        "peak_flops": 2.31e12, "peak_flops_source": "measured, float32 matmul",
        "device": "2 CPU cores", "world_size": 1, "precision": "32-true", "usd_per_hour": 0.1,
        "tokens": steps * 4096, "tokens_planned": 2400 * 4096,
        "command": "lit_llm fit --config pretrain/quickstart "
                   "--trainer.logger.init_args.api_key=abc123",
        "environment": {"python": "3.11.7", "torch": "2.13.0+cpu", "lightning": "2.6.6",
                        "lit_llm": "0.1.0", "os": "Linux 6.1", "cpu": "AMD EPYC 7B13"},
        "git": "3f9a2c1", "resumes": 1,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    prompts = ("def read", "Return")
    lines = [
        {"step": at, "tokens": at * 4096, "prompt": prompt, "text": text}
        for at, texts in SAMPLES.items() if at <= steps
        for prompt, text in zip(prompts, texts, strict=True)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (folder / "config.yaml").write_text(
        "# lit_llm==0.1.0\nseed_everything: 0\ntrainer:\n  precision: 32-true\n  logger:\n"
        "    - class_path: lit_llm.CSVLogger\n      init_args:\n        api_key: abc123\n"
        "model:\n  config:\n    n_layer: 6\n    n_embd: 256\n  eos_token: null\n"
        "data:\n  sources: stdlib\n  vocab_size: 4096\n  seq_len: 512\n  tokens: 9830400\n",
        encoding="utf-8",
    )
    card = {
        "format": 1, "created": "2026-11-23T19:06:20+00:00",
        "fingerprint": "fe5aadebe76332391bb725d28b3b29ede1c3e48b", "sources": "stdlib",
        "settings": {"tokenizer": None, "vocab_size": 4096, "validation_fraction": 0.05},
        "python": "3.11.7", "documents": 1631, "duplicates": 17,
        "dropped": {"not UTF-8": 2, "too short": 241}, "bytes": 31_500_914, "tokens": 9_081_833,
        "bytes_per_token": 3.4686, "splits": {
            "train": {"stdlib": {"documents": 669, "bytes": 10_891_820, "tokens": 3_239_160},
                      "stdlib-tests": {"documents": 889, "bytes": 18_805_228, "tokens": 5_331_610}},
            "validation": {"stdlib": {"documents": 40, "bytes": 1_224_455, "tokens": 346_542},
                           "stdlib-tests": {"documents": 33, "bytes": 579_411, "tokens": 164_521}},
        },
    }  # fmt: skip
    (folder / "datacard.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", name="write_fake_run")
def _write_fake_run() -> Callable[..., Path]:
    """`write_fake_run`, for fixtures that outlive a test."""
    return write_fake_run


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., Path]:
    """``fake_run(steps=..., status=..., extra=...)`` writes a run folder and returns it."""
    return lambda **options: write_fake_run(tmp_path / "run", **options)
