"""The step of lookup tables: each row is Adam of its own, without momentum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_llm.training.lookup_step import step_used_rows
from lit_llm.training.optimizers import MuonAdamW

ROWS, WIDTH = 6, 3
SETTINGS = {"lr": 0.1, "beta2": 0.95, "eps": 1e-8}
batches = st.lists(st.sets(st.integers(0, ROWS - 1), max_size=ROWS), min_size=1, max_size=8)


def gradients(used: list[set[int]]) -> list[Tensor]:
    """A gradient for each batch: random in the used rows, zero elsewhere."""
    torch.manual_seed(0)
    grads = [torch.zeros(ROWS, WIDTH) for _ in used]
    for grad, rows in zip(grads, used, strict=True):
        for row in rows:
            grad[row] = torch.randn(WIDTH)
    return grads


def stepped(grads: list[Tensor], find_rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    state = torch.randn(ROWS, WIDTH), torch.zeros(ROWS, 1), torch.zeros(ROWS, WIDTH)
    for grad in grads:
        table, steps, second = state
        step_used_rows(table, grad, steps, second, **SETTINGS, find_rows=find_rows)
    return state


@given(batches)
@settings(deadline=None)
def test_each_row_steps_as_torchs_adam_over_its_own_gradients(used: list[set[int]]) -> None:
    grads = gradients(used)
    table, _, _ = stepped(grads, find_rows=True)
    torch.manual_seed(1)
    for row, start in enumerate(torch.randn(ROWS, WIDTH)):
        alone = nn.Parameter(start.clone())
        adam = torch.optim.Adam([alone], lr=0.1, betas=(0.0, 0.95), eps=1e-8)
        for grad, rows in zip(grads, used, strict=True):
            if row in rows:
                alone.grad = grad[row]
                adam.step()
        torch.testing.assert_close(table[row], alone.detach())


@given(batches)
@settings(deadline=None)
def test_all_rows_at_once_give_the_same(used: list[set[int]]) -> None:
    """What a GPU computes, without waiting for the number of rows."""
    grads = gradients(used)
    for mine, other in zip(stepped(grads, True), stepped(grads, False), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("find_rows", [True, False])
def test_a_step_that_is_skipped_changes_nothing(find_rows: bool) -> None:
    table, steps, second = torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 3)
    grad = torch.full((2, 3), torch.inf)
    step_used_rows(
        table, grad, steps, second, **SETTINGS, find_rows=find_rows, found_inf=torch.ones(())
    )
    for state in (table, steps, second):
        assert torch.equal(state, torch.ones_like(state))


def test_the_optimizer_keeps_and_restores_the_state_of_rows() -> None:
    grads = gradients([{0, 1}, {1}, {2}, {1, 2}])
    whole = nn.Parameter(torch.zeros(ROWS, WIDTH))
    halves = nn.Parameter(torch.zeros(ROWS, WIDTH))
    first = MuonAdamW([{"params": [whole], "lookup": True, "lr": 0.1}])
    second = MuonAdamW([{"params": [halves], "lookup": True, "lr": 0.1}])
    for i, grad in enumerate(grads):
        if i == 2:
            saved = second.state_dict()
            second = MuonAdamW([{"params": [halves], "lookup": True, "lr": 0.1}])
            second.load_state_dict(saved)
        for p, optimizer in ((whole, first), (halves, second)):
            p.grad = grad.clone()
            optimizer.step()
    assert torch.equal(whole, halves)
    assert not whole[3:].any()  # rows that no batch used
