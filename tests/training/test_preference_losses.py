"""Losses of preferences: the papers' formulas, their properties, and mixtures of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_llm import UserError
from lit_llm.training.preferences.losses import (
    LOSSES,
    Answers,
    LossSettings,
    Mixture,
    _log1mexp,
    bradley_terry,
    robust,
    sigmoid,
)

numbers = st.floats(-30, -0.5, width=32)


def answers(logp: float, reference: float = 0.0, tokens: int = 1) -> Answers:
    values = (torch.tensor([float(value)]) for value in (logp, reference))
    return Answers(*values, torch.tensor([tokens]))


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# (chosen, reference, tokens), (rejected, reference, tokens), and what the paper's formula gives.
CHOSEN, REJECTED = (-3.0, -4.0, 2), (-9.0, -6.0, 5)
EXPECTED: dict[str, float] = {
    "sigmoid": -math.log(sig(0.1 * (1 - -3))),
    "robust": -math.log(sig(0.1 * 4)),
    "hinge": 1 - 0.1 * 4,
    "ipo": (1 / 2 - -3 / 5 - 1 / (2 * 0.1)) ** 2,
    "sigmoid_norm": -math.log(sig(5 * (1 / 2 + 3 / 5))),
    "apo_zero": 1 - sig(0.1 * 1) + sig(0.1 * -3),
    "apo_down": sig(0.1 * 1) + 1 - sig(0.1 * 4),
    "simpo": -math.log(sig(2 * (-3 / 2 + 9 / 5) - 0.5 * 2)),
    "orpo": -0.1 * math.log(sig(
        math.log(math.exp(-1.5) / (1 - math.exp(-1.5)))
        - math.log(math.exp(-1.8) / (1 - math.exp(-1.8)))
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.of_pairs])
def test_the_papers_formula_of_pairs(name: str) -> None:
    found = Mixture({name: 1.0}).of_pairs(answers(*CHOSEN), answers(*REJECTED))
    assert float(found[name]) == pytest.approx(EXPECTED[name], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "good", "expected"),
    [("kto", True, 1.5 * (1 - sig(0.1 * (1 - 0.25)))), ("kto", False, 1 - sig(0.1 * (0.25 - 1))),
     ("apo_zero_unpaired", True, 1.5 * (1 - sig(0.1))), ("apo_zero_unpaired", False, sig(0.1))],
)  # fmt: skip
def test_the_papers_formula_of_judged_answers(name: str, good: bool, expected: float) -> None:
    mixture = Mixture({name: 1.0}, settings=LossSettings(desirable_weight=1.5))
    found = mixture.of_judged(answers(*CHOSEN), torch.tensor([good]), torch.tensor(0.25))
    assert float(found[name]) == pytest.approx(expected, rel=1e-5)


@given(numbers, numbers, st.floats(0, 0.45))
def test_robust_is_without_bias_when_labels_are_flipped(
    chosen: float, rejected: float, share: float
) -> None:
    one, other = answers(chosen), answers(rejected)
    settings = LossSettings(label_smoothing=share)
    seen = (1 - share) * robust(one, other, settings) + share * robust(other, one, settings)
    torch.testing.assert_close(seen, sigmoid(one, other, LossSettings()), atol=1e-4, rtol=1e-4)


@given(numbers, numbers, st.floats(0.05, 0.45))
def test_smoothing_is_the_mean_over_labels(chosen: float, rejected: float, share: float) -> None:
    one, other = answers(chosen), answers(rejected)
    plain = [sigmoid(*pair, LossSettings()) for pair in ((one, other), (other, one))]
    smoothed = sigmoid(one, other, LossSettings(label_smoothing=share))
    torch.testing.assert_close(smoothed, (1 - share) * plain[0] + share * plain[1])


@given(st.floats(-80, -1e-6))
def test_log1mexp_is_exact_at_both_ends(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = _log1mexp(value)
    found.backward()
    exact = math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x))
    assert found.item() == pytest.approx(exact, rel=1e-9, abs=1e-30)
    assert isinstance(value.grad, Tensor)
    assert value.grad.item() == pytest.approx(math.exp(x) / math.expm1(x), rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_falls_where_the_chosen_answer_gains(name: str) -> None:
    mixture, values = Mixture({name: 1.0}), torch.tensor([-3.0, -9.0], requires_grad=True)
    zeros, tokens = torch.zeros(2), torch.tensor([2, 5])
    whole = Answers(values, zeros if not LOSSES[name].reference else values.detach(), tokens)
    if mixture.unpaired:
        found = mixture.of_judged(whole, torch.tensor([True, False]), torch.tensor(0.0))
    else:
        found = mixture.of_pairs(whole.take(slice(0, 1)), whole.take(slice(1, 2)))
    (slopes,) = torch.autograd.grad(found[name].sum(), values)
    # apo_down pushes both down, the rejected answer further.
    assert slopes[1] > 0 and (slopes[0] < 0 or name == "apo_down")
    assert slopes[0] < slopes[1]


def test_a_mixture_is_the_weighted_sum_of_its_losses() -> None:
    mixture = Mixture({"sigmoid": 0.7, "orpo": 2.0}, sft_weight=0.5)
    assert mixture.nll == 2.5 and mixture.reference and not mixture.kl
    found = mixture.of_pairs(answers(*CHOSEN), answers(*REJECTED))
    assert {name: pytest.approx(float(v), rel=1e-5) for name, v in found.items()} == {
        name: EXPECTED[name] for name in ("sigmoid", "orpo")
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": {}}, "model.loss is empty"),
        ({"weights": {"dpo": 1.0}}, "model.loss: 'dpo' is not one of sigmoid, robust"),
        ({"weights": {"sigmoid": 0}}, "model.loss.sigmoid: a weight is above 0"),
        ({"weights": {"sigmoid": 1, "kto": 1}}, "mixes losses of pairs with losses of single"),
        ({"weights": {"kto": 1}, "sft_weight": 0.1}, "model.sft_weight is for losses of pairs"),
        ({"weights": {"ipo": 1}, "settings": LossSettings(label_smoothing=0.1)},
         "model.label_smoothing is not used by ipo; it is for sigmoid, robust"),
        ({"weights": {"sigmoid": 1}, "settings": LossSettings(gamma=1)},
         "model.gamma is not used by sigmoid; it is for simpo"),
        ({"weights": {"robust": 1}, "settings": LossSettings(label_smoothing=0.5)},
         "must be below 0.5 for robust"),
    ],
)  # fmt: skip
def test_what_a_mixture_refuses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixture(**settings)


def test_bradley_terry_with_margin_and_centring() -> None:
    chosen, rejected = torch.tensor([1.0]), torch.tensor([-0.5])
    compared, centred = bradley_terry(chosen, rejected, torch.tensor([0.3]), 0.01)
    assert float(compared) == pytest.approx(-math.log(sig(1.5 - 0.3)), rel=1e-6)
    assert float(centred) == pytest.approx(0.01 * 0.25)
