"""plan: any two or three of model, tokens and means; the rest is found, or what is wrong is
said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.errors import UserError
from lit_llm.models.accounting.flops import flops_per_token, num_parameters
from lit_llm.models.config import TransformerConfig
from lit_llm.plan import advise, plan
from lit_llm.plan.cost import annotation
from lit_llm.plan.scaling import inference_aware, loss, optimal_params, optimal_tokens
from lit_llm.plan.solve import RANGES


@given(st.floats(1e8, 1e11), st.floats(1e9, 1e13), st.sampled_from(["h100", "a100-80gb", "b200"]))
@settings(max_examples=25, deadline=None)
def test_there_and_back(params: float, tokens: float, gpu: str) -> None:
    there = plan(params=params, tokens=tokens, gpu=gpu, gpus=512)
    fixed: dict[str, Any] = {"gpu": gpu, "gpus": 512}
    for limit in ({"gpu_hours": there.gpu_hours}, {"budget": there.usd}, {"days": there.days}):
        assert plan(params=params, **limit, **fixed).tokens == pytest.approx(tokens, rel=1e-3)
    if 4e8 < params < 9e9:  # at 3e8 and 1e10 a larger vocabulary is typical, and hours jump
        found = plan(tokens=tokens, gpu_hours=there.gpu_hours, **fixed)
        assert (
            found.params == pytest.approx(params, rel=0.05) and found.gpu_hours <= there.gpu_hours
        )
    assert there.gpu_hours_low < there.gpu_hours < there.gpu_hours_high


def test_the_split_of_a_budget() -> None:
    best = plan(budget=1e5, gpus=64)
    assert best.solved_for == "params, tokens" and best.usd == pytest.approx(1e5, rel=1e-3)
    assert best.tokens == pytest.approx(optimal_tokens(best.params))
    assert plan(budget=1e5, gpus=64, tokens_per_param=200).tokens == pytest.approx(
        200 * plan(budget=1e5, gpus=64, tokens_per_param=200).params
    )
    used = plan(budget=1e5, gpus=64, inference_tokens=1e13)
    assert used.params < best.params and used.tokens > best.tokens


def test_scaling_law() -> None:
    """Epoch's refit: about 20 tokens a parameter at Chinchilla's own budget (arXiv:2404.10102)."""
    for params in (1e8, 1e9, 1e11):
        tokens = optimal_tokens(params)
        assert 15 < tokens / params < 26 and optimal_params(tokens) == pytest.approx(params)
        for step in (0.9, 1.1):  # along equal FLOPs, the optimum is the least
            assert loss(params * step, tokens / step) > loss(params, tokens)
    smaller, longer = inference_aware(1e10, 2e11, 1e13)
    assert smaller < 1e10 and loss(smaller, longer) == pytest.approx(loss(1e10, 2e11))
    assert inference_aware(1e10, optimal_tokens(1e10), 1.0)[0] == pytest.approx(1e10, rel=0.01)


def test_gpus_are_found() -> None:
    found = plan(params=7e9, tokens=1e12, days=20)
    assert (
        found.gpus % 8 == 0
        and found.days <= 20
        and plan(params=7e9, tokens=1e12, gpus=found.gpus - 8).days > 20
    )
    # What memory needs, though so few FLOPs would use one node
    assert plan(params=70e9, tokens=1e9).gpus >= 16
    both = plan(params=7e9, days=30, budget=1e5)
    assert both.days <= 30 and both.usd == pytest.approx(1e5, rel=0.01)


def test_a_known_model_is_counted_exactly() -> None:
    config = TransformerConfig.from_preset("qwen3-30b-a3b")
    found = plan(config=config, tokens=1e12, gpus=256, seq_len=2048)
    assert found.total_params == num_parameters(config)
    assert 3.0e9 < found.params < 3.6e9  # its name says 3B active
    assert found.flops == pytest.approx(flops_per_token(config, 2048) * 1e12)
    dense, sparse = (plan(params=3e9, total_params=t, tokens=1e12, gpus=256) for t in (None, 30e9))
    assert sparse.flops == dense.flops and sparse.checkpoint_gb == 10 * dense.checkpoint_gb


def test_lora_costs_less() -> None:
    full, lora = (plan(params=8e9, tokens=1e9, gpus=8, lora=way) for way in (False, True))
    assert lora.flops < 0.75 * full.flops and lora.checkpoint_gb < full.checkpoint_gb


def test_the_reason_names_what_lora_holds() -> None:
    found = plan(params=8e9, tokens=1e9, gpus=1, gpu="rtx-4090", seq_len=2048, lora=True)
    assert found.parallelism_reason.startswith("frozen weights are 16 GB")
    assert found.memory_gb < 24 and found.checkpoint_gb == 0


@pytest.mark.parametrize("gpus", [3, 5, 6, 7, 12])
def test_matrices_are_not_cut_across_more_gpus_than_there_are(gpus: int) -> None:
    found = plan(params=1e9, tokens=1e9, gpus=gpus, batch_tokens=4096)
    assert found.gpus == gpus and "tensor parallel" in found.parallelism


def test_a_quantised_base_is_not_sharded() -> None:
    given: dict[str, Any] = {"params": 70e9, "tokens": 1e9, "lora": True}
    small = plan(**given, quantize="nf4", gpus=8)
    assert small.parallelism.startswith("DDP over 8") and small.memory_gb < 80
    assert plan(**given, gpus=8).parallelism.startswith("FSDP")
    with pytest.raises(UserError, match="nor on any number of them"):
        plan(**given, quantize="int8", gpu="a100-40gb", gpus=8)


@given(
    st.dictionaries(st.sampled_from(sorted(RANGES)), st.floats(0, 1), min_size=2),
    st.sampled_from(["h100", "t4"]),
)
@settings(max_examples=60, deadline=None)
def test_no_number_in_its_range_breaks_the_planner(shares: dict[str, float], gpu: str) -> None:
    def value(name: str, share: float) -> float:
        low, high = max(RANGES[name].low, 1e-6), RANGES[name].high
        found = min(high, low * (high / low) ** share)  # a share of the range's orders of magnitude
        return int(found) if name in ("gpus", "seq_len") else found

    try:
        found = plan(gpu=gpu, **{name: value(name, share) for name, share in shares.items()})
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found.gpu_hours > 0 and found.days > 0


def test_calibrated_by_a_measurement() -> None:
    found = plan(params=1e9, tokens=1e11, gpus=8, mfu=0.55)
    assert found.mfu == pytest.approx(0.55 * found.goodput)
    wide = plan(params=1e9, tokens=1e11, gpus=512, mfu=0.55)
    assert wide.mfu < found.mfu and wide.gpu_hours_low < wide.gpu_hours < wide.gpu_hours_high


def test_advice_is_sorted_and_says_why_not() -> None:
    plans, refused = advise(params=70e9, tokens=1e11, gpus=16)
    priced = [p.usd for p in plans if p.usd is not None]
    assert priced == sorted(priced) and {"h100", "h200"} <= {p.gpu for p in plans}
    assert "do not fit on 16 x t4" in refused["t4"]
    with pytest.raises(UserError, match="no known accelerator"):
        advise(params=1e14, tokens=1e9, gpus=1)


def test_annotation() -> None:
    work = annotation(items=1000, minutes=6, overlap=3, wage=15)
    assert work.hours == 300 and work.usd == 4500
    with pytest.raises(UserError, match="minutes=0: must be above 0"):
        annotation(items=1, minutes=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to plan"),
        ({"params": -1.0}, "params=-1: must be above 0"),
        ({"params": 1e9, "tokens": float("nan")}, "tokens=nan: must be above 0"),
        ({"params": 1e9, "tokens": 0.0}, "tokens=0: must be above 0"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "h10"}, "nearest are h100"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "A100"}, "nearest are a100-40gb, a100-80gb"),
        ({"params": 7e9, "tokens": 1e12, "gpus": 8, "days": 1}, "days=1: the run takes .* leave "
                                                                "out gpus"),
        ({"params": 7e9, "tokens": 1e12, "budget": 10.0}, "budget=10: the run costs .* find GPUs "
                                                          "at"),
        ({"params": 7e9, "tokens": 1e12, "gpu_hours": 10.0}, "gpu_hours=10: the run takes"),
        ({"params": 7e9, "tokens": 1e18, "days": 1.0}, "no number of GPUs is fast enough"),
        ({"days": 3.0}, "give gpus, budget or gpu_hours too"),
        ({"budget": 1e-6}, "do not pay for any training"),
        ({"budget": 1e5, "gpu": "gb200"}, "give usd_per_hour"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "a100-80gb", "precision": "fp8"}, "has no fp8"),
        ({"params": 1e9, "total_params": 1e8, "tokens": 1e9}, "total_params"),
        ({"params": 1e9, "tokens": 1e9, "tokens_per_param": 3.0}, "leave one of the three out"),
        ({"params": 70e9, "tokens": 1e9, "gpus": 8, "gpu": "a100-40gb"}, "do not fit on 8 x "
                                                                         "a100-40gb.*gpus=40"),
        ({"params": 1e9, "tokens": 1e9, "leave_out": "Nobody"}, "no such family"),
        ({"params": 1e9, "tokens": 1e9, "mfu": 55.0}, "mfu=55: must be above 0 to 1"),
        ({"params": 1e9, "tokens": 1e9, "gpus": 10**9}, "gpus=1,000,000,000: .* to 1,000,000"),
        ({"params": 1e300, "tokens": 1e9}, "params=1e\\+300: must be"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "h20"}, "nearest are h200"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "l4"}, "nearest are l40s"),
        ({"params": 1e9, "tokens": 1e9, "gpu": "h100 sxm"}, "nearest are h100"),
        ({"params": 7e9, "tokens": 1e9, "gpus": 1}, "set gpus=2 or more"),
        ({"params": 1e9, "tokens": 1e9, "quantize": "nf4"}, "quantize=nf4: .* needs lora"),
    ],
)  # fmt: skip
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**given)
