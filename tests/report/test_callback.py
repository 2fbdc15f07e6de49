"""run.json: what `RunReport` notes of a run."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from lit_llm.models.accounting.hardware import find_accelerator
from lit_llm.report import callback
from lit_llm.report.callback import RunReport
from lit_llm.training.loggers import CSVLogger


class Half(L.LightningModule):
    """Two weights, of which one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen = (
            torch.nn.Linear(4, 1, bias=False),
            torch.nn.Linear(4, 2, bias=False),
        )
        self.frozen.requires_grad_(False)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.trained(batch) + self.frozen(batch).sum()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trained.parameters(), lr=0.1)


def fit(
    folder: Path,
    steps: int,
    argv: list[str],
    monkeypatch: pytest.MonkeyPatch,
    start: Path | None = None,
) -> dict:
    monkeypatch.setattr("sys.argv", argv)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=folder, callbacks=[RunReport()],
        logger=CSVLogger(folder), enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(
        Half(), torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=1), ckpt_path=start
    )
    trainer.save_checkpoint(folder / "last.ckpt")
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_the_first_command_stays_and_resumes_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    first = fit(folder, 2, ["/bin/lit_llm", "fit", "--data.sources", "my texts"], monkeypatch)
    assert first["command"] == "lit_llm fit --data.sources 'my texts'" and first["resumed"] == []
    assert (first["parameters"], first["parameters_trained"]) == (12, 4)
    for steps in (4, 6):
        again = fit(
            folder, steps, ["lit_llm", "fit", f"--{steps}"], monkeypatch, folder / "last.ckpt"
        )
    assert again["command"] == first["command"] and again["resumes"] == 2
    assert again["resumed"] == [
        {"step": 2, "command": "lit_llm fit --4"}, {"step": 4, "command": "lit_llm fit --6"},
    ]  # fmt: skip
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Resumed after step 4 with" in html and "4 trained (33.3%), 8 frozen" in html
    fresh = fit(tmp_path / "run", 2, ["lit_llm", "fit"], monkeypatch)
    assert fresh["command"] == "lit_llm fit" and fresh["resumed"] == []


@pytest.mark.parametrize(
    ("device", "planned"),
    [
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_run_costs_what_the_planner_said(
    device: str, planned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    expected = find_accelerator(planned).usd
    assert expected is not None
    assert callback._price(torch.device("cuda"), 8) == 8 * expected


@pytest.mark.parametrize("device", ["NVIDIA GB200", "NVIDIA H20", "NVIDIA H100 NVL"])
def test_a_device_that_has_no_price(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device)
    assert callback._price(torch.device("cuda"), 1) is None
