"""Losses of preferences as functions of the answers' log-probabilities.

Shapes: P pairs, A answers. Log-probabilities are sums over the tokens of an answer, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.errors import UserError


class Answers(NamedTuple):
    """Log-probabilities of answers, float32 (A,).

    Attributes:
        logps: of the model.
        reference: of the reference, without a gradient; zeros for losses that have none.
        tokens: tokens of each answer.
    """

    logps: Tensor
    reference: Tensor
    tokens: Tensor

    @property
    def ratio(self) -> Tensor:
        """log(model / reference) of each answer."""
        return self.logps - self.reference

    @property
    def per_token(self) -> Tensor:
        """Mean log-probability of a token of each answer."""
        return self.logps / self.tokens

    def take(self, index: slice | Tensor) -> Answers:
        """Some of the answers."""
        return Answers(self.logps[index], self.reference[index], self.tokens[index])


@dataclass(frozen=True)
class LossSettings:
    """Numbers of the losses."""

    beta: float = 0.1
    """Scale of the log-ratios; of orpo, the weight of the odds ratio."""
    label_smoothing: float = 0.0
    """Probability that a pair is labelled the wrong way round; for sigmoid and robust."""
    gamma: float = 0.5
    """simpo's margin, as a share of beta."""
    desirable_weight: float = 1.0
    """Weight of the good answers; for kto and apo_zero_unpaired."""
    undesirable_weight: float = 1.0
    """Weight of the bad answers."""


def sigmoid(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """DPO, equation 7 of arXiv:2305.18290; with label_smoothing cDPO (Mitchell 2023)."""
    logits, smooth = settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing
    return -(1 - smooth) * F.logsigmoid(logits) - smooth * F.logsigmoid(-logits)


def robust(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """rDPO, equation 12 of arXiv:2403.00409: without bias if label_smoothing pairs are flipped."""
    logits, smooth = settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing
    right, wrong = -(1 - smooth) * F.logsigmoid(logits), -smooth * F.logsigmoid(-logits)
    return (right - wrong) / (1 - 2 * smooth)


def hinge(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """The hinge of SLiC, equation 2 of arXiv:2305.10425, on the log-ratios (arXiv:2309.06657)."""
    return torch.relu(1 - settings.beta * (chosen.ratio - rejected.ratio))


def ipo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """IPO, equation 17 of arXiv:2310.12036, on mean log-ratios of tokens; beta is its tau."""
    difference = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
    return (difference - 1 / (2 * settings.beta)).square()


def sigmoid_norm(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """DPO on mean log-ratios of tokens, section 5.1.4 of arXiv:2411.15124 (Tulu 3)."""
    difference = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
    return -F.logsigmoid(settings.beta * difference)


def apo_zero(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """APO-zero, equation 7 of arXiv:2408.06266: chosen answers up, rejected ones down."""
    beta = settings.beta
    return torch.sigmoid(-beta * chosen.ratio) + torch.sigmoid(beta * rejected.ratio)


def apo_down(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """APO-down, equation 8 of arXiv:2408.06266: both down, rejected answers further."""
    beta = settings.beta
    return torch.sigmoid(beta * chosen.ratio) + torch.sigmoid(
        -beta * (chosen.ratio - rejected.ratio)
    )


def simpo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """SimPO, equation 6 of arXiv:2405.14734; its gamma is ``gamma * beta`` here."""
    difference = chosen.per_token - rejected.per_token
    return -F.logsigmoid(settings.beta * (difference - settings.gamma))


def orpo(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """The odds ratio of ORPO, equation 7 of arXiv:2403.07691, times beta (its lambda).

    The nll of the chosen answer, which belongs to the loss, is added by `LossKind.nll`.
    """
    odds = [one.per_token - _log1mexp(one.per_token) for one in (chosen, rejected)]
    return -settings.beta * F.logsigmoid(odds[0] - odds[1])


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact on both ends (Maechler 2012)."""
    x = x.clamp(max=-1e-7)
    # Both branches are finite, because where's gradient multiplies the other one by 0.
    near, far = x.clamp(min=-0.7), x.clamp(max=-0.6)
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(near)), torch.log1p(-far.exp()))


def kto(answers: Answers, good: Tensor, kl: Tensor, settings: LossSettings) -> Tensor:
    """KTO, equation 8 of arXiv:2402.01306; ``kl`` is its z0, without a gradient."""
    values = torch.where(good, answers.ratio - kl, kl - answers.ratio)
    return _weights(good, settings) * torch.sigmoid(-settings.beta * values)


def apo_zero_unpaired(answers: Answers, good: Tensor, kl: Tensor, settings: LossSettings) -> Tensor:
    """The two terms of APO-zero (equation 7 of arXiv:2408.06266) on single answers."""
    return kto(answers, good, torch.zeros_like(kl), settings)


def _weights(good: Tensor, settings: LossSettings) -> Tensor:
    return torch.where(good, settings.desirable_weight, settings.undesirable_weight)


PairLoss = Callable[[Answers, Answers, LossSettings], Tensor]
JudgedLoss = Callable[[Answers, Tensor, Tensor, LossSettings], Tensor]


@dataclass(frozen=True)
class LossKind:
    """A row of the table of losses.

    Attributes:
        of_pairs: (chosen, rejected, settings) -> losses (P,); None for a loss of judged answers.
        of_judged: (answers, good, kl, settings) -> losses (A,); None for a loss of pairs.
        beta: the default of ``beta``.
        reference: whether it compares with a reference.
        kl: whether it needs the model's KL to the reference.
        nll: weight of the chosen answers' nll per token that belongs to it.
        options: settings that it reads beside beta.
        learning_rates: defaults for all weights and for LoRA.
    """

    of_pairs: PairLoss | None = None
    of_judged: JudgedLoss | None = None
    beta: float = 0.1
    reference: bool = True
    kl: bool = False
    nll: float = 0.0
    options: tuple[str, ...] = ()
    learning_rates: tuple[float, float] = (5e-7, 5e-6)


_WEIGHTS = ("desirable_weight", "undesirable_weight")
LOSSES: dict[str, LossKind] = {
    "sigmoid": LossKind(sigmoid, options=("label_smoothing",)),
    "robust": LossKind(robust, options=("label_smoothing",)),
    "hinge": LossKind(hinge),
    "ipo": LossKind(ipo),
    "sigmoid_norm": LossKind(sigmoid_norm, beta=5.0),
    "apo_zero": LossKind(apo_zero),
    "apo_down": LossKind(apo_down),
    "simpo": LossKind(simpo, beta=2.0, reference=False, options=("gamma",)),
    "orpo": LossKind(orpo, reference=False, nll=1.0, learning_rates=(8e-6, 8e-5)),
    "kto": LossKind(of_judged=kto, kl=True, options=_WEIGHTS),
    "apo_zero_unpaired": LossKind(of_judged=apo_zero_unpaired, options=_WEIGHTS),
}
"""Every loss by its name. `Mixture` reads this table, and nothing else knows the names."""


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of losses of one kind of data.

    Attributes:
        weights: weight of each loss by its name in `LOSSES`.
        beta: of all losses; None: each one's own.
        sft_weight: weight of the chosen answers' nll per token, beside that of the losses.
        settings: the other numbers of the losses.
    """

    weights: Mapping[str, float]
    beta: float | None = None
    sft_weight: float = 0.0
    settings: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError(f"model.loss is empty; give one of {', '.join(LOSSES)}")
        for name, weight in self.weights.items():
            if name not in LOSSES:
                raise UserError(f"model.loss: {name!r} is not one of {', '.join(LOSSES)}")
            if not isinstance(weight, int | float) or not 0 < weight <= 1e4:
                raise UserError(f"model.loss.{name}: a weight is above 0 and at most 10000")
        if len({kind.of_pairs is None for kind in self.kinds}) > 1:
            raise UserError(
                f"model.loss: {', '.join(self.weights)} mixes losses of pairs with losses of "
                "single answers; a run has one kind of data"
            )
        if self.unpaired and self.sft_weight:
            raise UserError("model.sft_weight is for losses of pairs, which have a chosen answer")
        default = LossSettings()
        for option in ("label_smoothing", "gamma", *_WEIGHTS):
            if getattr(self.settings, option) != getattr(default, option) and not any(
                option in kind.options for kind in self.kinds
            ):
                users = [name for name, kind in LOSSES.items() if option in kind.options]
                raise UserError(
                    f"model.{option} is not used by {', '.join(self.weights)}; it is for "
                    f"{', '.join(users)}"
                )
        if "robust" in self.weights and self.settings.label_smoothing >= 0.5:
            raise UserError("model.label_smoothing must be below 0.5 for robust")

    @property
    def kinds(self) -> list[LossKind]:
        """The rows of the table."""
        return [LOSSES[name] for name in self.weights]

    @property
    def unpaired(self) -> bool:
        """Whether the losses are of judged answers, not of pairs."""
        return self.kinds[0].of_pairs is None

    @property
    def reference(self) -> bool:
        """Whether a loss compares with a reference."""
        return any(kind.reference for kind in self.kinds)

    @property
    def kl(self) -> bool:
        """Whether a loss needs the KL to the reference over the whole step."""
        return any(kind.kl for kind in self.kinds)

    @property
    def nll(self) -> float:
        """Weight of the chosen answers' nll per token."""
        own = sum(w * LOSSES[name].nll for name, w in self.weights.items())
        return own + self.sft_weight

    def settings_of(self, name: str) -> LossSettings:
        """The numbers of one of the losses."""
        beta = LOSSES[name].beta if self.beta is None else self.beta
        return replace(self.settings, beta=beta)

    def of_pairs(self, chosen: Answers, rejected: Answers) -> dict[str, Tensor]:
        """Each loss of each pair without its weight, float32 (P,)."""
        return {
            name: function(chosen, rejected, self.settings_of(name))
            for name in self.weights
            if (function := LOSSES[name].of_pairs) is not None
        }

    def of_judged(self, answers: Answers, good: Tensor, kl: Tensor) -> dict[str, Tensor]:
        """Each loss of each answer without its weight, float32 (A,).

        Args:
            answers: the answers.
            good: whether each is good, bool (A,).
            kl: mean log-ratio of mismatched answers, float32 scalar, at least 0.
        """
        return {
            name: function(answers, good, kl, self.settings_of(name))
            for name in self.weights
            if (function := LOSSES[name].of_judged) is not None
        }

    def reward_scale(self) -> float:
        """Factor from log-ratios to rewards: the beta of the first loss."""
        return self.settings_of(next(iter(self.weights))).beta


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None, center: float
) -> tuple[Tensor, Tensor]:
    """Losses of a reward model, float32 (P,): of the comparison and of the centring.

    Args:
        chosen, rejected: rewards of the two answers.
        margin: how much better the chosen answer is (section 3.2.2 of arXiv:2307.09288).
        center: weight of the squared sum, which keeps rewards near 0 (arXiv:2312.09244, eq. 2).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -F.logsigmoid(difference), center * (chosen + rejected).square()
