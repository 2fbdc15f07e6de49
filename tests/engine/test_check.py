"""The check of a machine sees kernels whose rows depend on each other, and sees nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_llm.errors import UserError
from lit_llm.models.engine import budget
from lit_llm.models.engine import check as checking
from lit_llm.models.engine.budget import bytes_per_token, token_budgets
from lit_llm.models.engine.check import check
from lit_llm.models.engine.memory import SlotMemory
from tests.engine.models import tiny


def test_this_machine() -> None:
    found = check(tiny(torch.bfloat16))
    assert found.holds and found.answers == 8 and not found.changed
    assert list(found.lines()) == [
        "bfloat16: same bits in any company",
        "float32: same bits in any company",
        "0 of 8 answers in bfloat16 changed in company",
    ]


def test_a_product_that_depends_on_its_rows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_kernel(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rows @ weight.to_dense().T * (1.001 if len(rows) > 16 else 1.0)

    monkeypatch.setattr(checking, "_linear", other_kernel)
    found = check(tiny())
    assert not found.holds and not found.changed
    assert "64 x 97" in found.products[torch.float32]


def test_answers_that_depend_on_their_company_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a kernel whose result for a row depends on the other rows."""
    model = tiny()
    hidden = model.hidden_states
    monkeypatch.setattr(
        model, "hidden_states", lambda ids, cache: hidden(ids, cache=cache) * (1 + ids.sum() / 1e6)
    )
    assert check(model).changed > 0


def test_budgets() -> None:
    model = tiny(torch.bfloat16)
    size = bytes_per_token(model)
    memory = SlotMemory(2, 2, 16, 9999, torch.device("cpu"), torch.bfloat16)
    memory.ensure(256, {256: 1})
    keys, values = memory.read(256, 0, 0, 256)
    assert size * 256 == keys.nbytes + values.nbytes
    assert token_budgets(model, 1.0) == (int(0.75e9 / size), int(0.25e9 / size))
    assert token_budgets(model, 1.0, 0.0) == (int(1e9 / size), 0)
    slots, prefixes = token_budgets(model)
    assert slots > prefixes > 0
    with pytest.raises(UserError, match="prefix_gb=2 must be below kv_gb=1"):
        token_budgets(model, 1.0, 2.0)
    with pytest.raises(UserError, match="set a larger kv_gb"):
        token_budgets(model, 1e-5)


def test_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu, meminfo = torch.device("cpu"), tmp_path / "meminfo"
    monkeypatch.setattr(budget, "MEMINFO", meminfo)
    monkeypatch.setattr(budget, "GROUP", tmp_path)
    with pytest.raises(UserError, match="set kv_gb"):
        budget.free_bytes(cpu)
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert budget.free_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert budget.free_bytes(cpu) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert budget.free_bytes(cpu) == 3000
