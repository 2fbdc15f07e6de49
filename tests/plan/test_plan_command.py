"""`lit_llm plan` in the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_llm.cli import main
from lit_llm.plan.command import number

SEED = ["--params", "70e9", "--tokens", "2e12", "--gpu", "a100-80gb", "--gpus", "6000"]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["plan", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *SEED, "--json")
    found = json.loads(out)
    assert status == 0
    assert {
        "gpu_hours",
        "gpu_hours_low",
        "gpu_hours_high",
        "days",
        "usd",
        "mfu",
        "memory_gb",
        "parallelism",
    } <= set(found)
    status, out, _ = run(capsys, *SEED)
    assert status == 0 and f"{found['gpu_hours']:,.0f}" in out and "6,000 x a100-80gb" in out
    again = json.loads(run(capsys, "--params", "70B", "--tokens", "2T", *SEED[4:], "--json")[1])
    assert again == found


def test_configs_and_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "--config", "pretrain/base-135m", "--json", "--gpus", "4")[1])
    assert found["tokens"] == 2.7e9 and found["batch_tokens"] == 262_144 and found["gpus"] == 4
    assert found["seq_len"] == 2048 and 1.3e8 < found["params"] < 1.4e8
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {class_path: lit_llm.PretrainModule, init_args: {transformer: {preset: "
        "qwen3-0.6b, num_layers: 4}}}\n"
        "data: {init_args: {tokens: 1000000, seq_len: 512}}\ntrainer: {devices: 2}\n"
    )
    found = json.loads(run(capsys, "--config", str(file), "--json")[1])
    assert found["gpus"] == 2 and found["tokens"] == 1e6
    file.write_text("params: 7e9\ntokens: 1e12\n")
    assert json.loads(run(capsys, "--config", str(file), "--json")[1])["params"] == 7e9
    assert run(capsys, f"--config={file}", "--json")[0] == 0
    tuned = json.loads(run(capsys, "--config=finetune/quickstart", "--tokens", "3M", "--json")[1])
    assert tuned["tokens"] == 3e6 and tuned["params"] == 134_515_008 and tuned["gpus"] == 1
    status, _, err = run(capsys, "--config", "finetune/quickstart")
    assert status == 2 and "give --tokens" in err
    named = json.loads(run(capsys, "--model", "llama-3-8b", "--tokens", "1T", "--json")[1])
    assert named["params"] == 8_030_261_248


def test_advice_annotation_and_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "--params", "7B", "--tokens", "1T", "--days", "30", "--advise")
    assert status == 0 and "h100" in out and "<- fastest" in out
    assert "$1,667" in run(capsys, "--items", "1000")[1]
    both = json.loads(
        run(capsys, "--items", "1000", "--params", "1B", "--tokens", "1B", "--json")[1]
    )
    assert both["annotation_hours"] == pytest.approx(83.3, abs=0.1) and both["gpu_hours"] > 0
    (tmp_path / "metrics.csv").write_text("step,mfu\n1,0.30\n2,0.50\n3,0.52\n")
    small = ["--params", "1B", "--tokens", "20B", "--gpus", "8", "--json"]
    assert json.loads(run(capsys, *small, "--calibrate", str(tmp_path))[1])["mfu"] == pytest.approx(
        0.5, rel=0.01
    )
    (tmp_path / "metrics.csv").write_text("step,mfu\n1,\n")
    status, _, err = run(capsys, *small, "--calibrate", str(tmp_path))
    assert status == 2 and "has no mfu" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--params", "7x"], "--params"),
        (
            ["--params", "7B", "--tokens", "1T", "--days", "9", "--advise", "--gpu", "a100"],
            "--advise",
        ),
        (["--parms", "7B"], "did you mean --params"),
        (["--params", "0", "--tokens", "1T"], "params=0: must be above 0"),
        (["--model", "lama-3-8b", "--tokens", "1T"], "llama-3-8b"),
        (["--config", "pretrain/base-135"], "did you mean pretrain/base-135m"),
        (["--calibrate", "nowhere", "--params", "1B", "--tokens", "1B"], "not a run's metrics"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *args)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1


def test_numbers() -> None:
    assert [number(t) for t in ("70e9", "70B", "2T", "1.5M", "2_700_000", "3k")] == [
        70e9,
        70e9,
        2e12,
        1.5e6,
        2.7e6,
        3e3,
    ]
    for bad in ("", "B", "7x", "1,5", "--"):
        with pytest.raises(ValueError):
            number(bad)


def test_help_and_plans_by_size_need_no_torch() -> None:
    program = (
        "import sys; from lit_llm.cli import main; main(['plan', '--params', '7B', '--tokens', "
        "'1T'])\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
