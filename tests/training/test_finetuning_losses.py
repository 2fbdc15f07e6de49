"""What SFTModule minimises: against plain formulas on the model's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lit_llm import LoRAConfig, SFTModule, Transformer, TransformerConfig, UserError
from lit_llm.models.lora import lora_layers
from lit_llm.training.finetuning.neftune import EmbeddingNoise
from lit_llm.training.optimizers import OptimizerName, parameter_groups

LORA = LoRAConfig(rank=4)
DORA = LoRAConfig(rank=4, dora=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = Transformer(
        TransformerConfig(vocab_size=61, hidden_size=32, num_layers=2, num_heads=2, max_seq_len=64)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Two rows of several documents, padded, in part supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(0, 61, (2, 2, 20), generator=generator)
    labels[torch.rand(2, 20, generator=generator) < 0.4] = -100
    documents = torch.tensor([[0] * 7 + [1] * 10 + [-1] * 3, [0] * 12 + [1] * 8])
    labels[documents < 0] = -100
    return {"input_ids": ids, "labels": labels, "document_ids": documents}


def logits(model: Any, of: dict[str, Tensor]) -> Tensor:
    hidden = model.hidden_states(of["input_ids"], document_ids=of["document_ids"])
    return model.logits(hidden)[of["labels"] != -100].float()


def built(base: Path, **settings: Any) -> SFTModule:
    """A module with its network, as for training, whose updates are not zero."""
    module = SFTModule(str(base), **settings)
    module.configure_model()
    torch.manual_seed(1)
    for layer in lora_layers(module.network):
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    return module.train()


def expected(module: SFTModule, of: dict[str, Tensor], start: Transformer) -> Tensor:
    own, labels = logits(module.network, of), of["labels"][of["labels"] != -100]
    hp = module.hparams
    losses = F.cross_entropy(own, labels, reduction="none", label_smoothing=hp["label_smoothing"])
    if hp["loss"] == "dft":
        losses = losses * (-losses).exp().detach()
    with torch.no_grad():
        log_q = logits(start, of).log_softmax(-1)
    kl = F.kl_div(own.log_softmax(-1), log_q, log_target=True, reduction="sum")
    return losses.sum() + hp["anchor"] * kl


@pytest.mark.parametrize("lora", [None, LORA, DORA])
@pytest.mark.parametrize(
    "settings", [{"loss": "dft"}, {"label_smoothing": 0.1}, {"anchor": 0.3},
                 {"loss": "dft", "anchor": 0.05}],
)  # fmt: skip
def test_the_loss_and_its_gradient(
    base: Path, lora: LoRAConfig | None, settings: dict[str, Any]
) -> None:
    if lora is None and "anchor" in settings:
        pytest.skip("the frozen copy is made by the run, see the next test")
    module, start = built(base, lora=lora, **settings), Transformer.from_pretrained(base)
    results = []
    for value in (module.compute_loss(batch()), expected(module, batch(), start)):
        value.backward()
        trained = [p for p in module.parameters() if p.requires_grad]
        results.append((value, *(p.grad.clone() for p in trained)))
        module.zero_grad()
    assert float(results[0][0]) == pytest.approx(float(results[1][0]), rel=1e-6)
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    # Validation measures the nll, whatever is trained.
    plain = module.token_losses(batch())
    known = batch()["labels"] != -100
    nll = F.cross_entropy(logits(module.network, batch()), batch()["labels"][known])
    torch.testing.assert_close(plain[known].mean(), nll)


def run(module: SFTModule, folder: Path, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch(i) for i in range(3)], batch_size=None))
    return trainer


def test_the_anchor_of_all_weights_is_a_frozen_copy(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = SFTModule(str(base), anchor=0.5, learning_rate=1e-2, validate_first=False)
    with caplog.at_level("INFO"):
        run(module, tmp_path)
    assert "a frozen copy of the start takes 0.00 GiB more" in caplog.text
    start = Transformer.from_pretrained(base)
    assert (start.head.weight - module.network.head.weight).abs().max() > 1e-3
    assert float(module.compute_loss(batch())) == pytest.approx(
        float(expected(module, batch(), start)), rel=1e-5
    )
    assert module.state_dict().keys() == {f"model.{n}" for n in start.state_dict()}


def test_the_anchor_holds_the_model_near_its_start(base: Path, tmp_path: Path) -> None:
    start, far = Transformer.from_pretrained(base), []
    for anchor in (0.0, 20.0):
        module = SFTModule(
            str(base), lora=LORA, anchor=anchor, learning_rate=3e-2, validate_first=False
        )
        run(module, tmp_path)
        with torch.no_grad():
            p, q = (logits(m, batch()).log_softmax(-1) for m in (module.network, start))
        far.append(float(F.kl_div(p, q, log_target=True, reduction="batchmean")))
    assert far[1] < far[0] / 2


def test_noise_on_embeddings_has_its_bound_and_only_in_training(base: Path) -> None:
    module = built(base, lora=LORA, neftune=5.0)
    noise, of = module._noise_on_embeddings, batch()
    assert isinstance(noise, EmbeddingNoise)
    embed = module.network.embed
    silent = embed(of["input_ids"])
    with noise.on(of):
        added = (embed(of["input_ids"]) - silent).abs()
    lengths = torch.tensor([[7] * 7 + [10] * 10 + [3] * 3, [12] * 12 + [8] * 8])
    bound = (5 / (lengths * 32).sqrt())[..., None]
    assert (added <= bound * 1.0001).all() and (added > 0.9 * bound).any(-1).float().mean() > 0.8
    with noise.on({"input_ids": of["input_ids"]}):  # a row is one document
        row = (embed(of["input_ids"]) - silent).abs()
    assert row.max() <= 5 / (20 * 32) ** 0.5 < added.max()
    assert torch.equal(embed(of["input_ids"]), silent)
    torch.manual_seed(0)
    first = module.compute_loss(of)
    torch.manual_seed(0)
    assert torch.equal(module.compute_loss(of), first)  # the seed alone decides
    assert not torch.equal(module.compute_loss(of), first)
    assert torch.equal(module.token_losses(of), module.token_losses(of))


def test_the_anchors_reference_has_no_noise(base: Path) -> None:
    module = built(base, lora=LORA, neftune=5.0, anchor=1.0)
    seen = []
    module.network.embed.register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    module.compute_loss(batch())
    silent = module.network.embed.weight[batch()["input_ids"]]
    assert torch.equal(seen[0], silent) and not torch.equal(seen[1], silent)


def test_what_is_frozen_stays(base: Path, tmp_path: Path) -> None:
    frozen = ["embed", r"layers\.0\.", r".*norm"]
    module = SFTModule(str(base), freeze=frozen, learning_rate=1e-2, validate_first=False)
    run(module, tmp_path)
    start = Transformer.from_pretrained(base).state_dict()
    moved = {n for n, v in module.network.state_dict().items() if not torch.equal(v, start[n])}
    assert moved == {
        n for n in start if n.startswith(("layers.1.", "head")) and "norm" not in n
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"freeze": ["nothing"]}, r"model.freeze: 'nothing' matches no trained weight; they are "
                                  r"named as embed.weight"),
        ({"freeze": ["head", "."]}, r"model.freeze: it freezes every weight"),
        ({"freeze": ["("]}, r"model.freeze: '\(' is no regular expression"),
        ({"loss": "dft", "label_smoothing": 0.1}, r"model.label_smoothing is for model.loss=nll"),
        ({"label_smoothing": 1.0}, r"model.label_smoothing=1: must be from 0 and below 1"),
        ({"loss": "mse"}, r"model.loss must be one of"),
        ({"anchor": 1.0, "lora": LoRAConfig(train_modules=("embed",))},
         r"model.anchor: what lora.train_modules trains has no copy"),
    ],
)  # fmt: skip
def test_mistakes(base: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SFTModule(str(base), **settings).configure_model()


@pytest.mark.parametrize(
    ("lora", "rehearsal", "steps", "rate"),
    [(None, 0.0, 9, 2e-5), (LORA, 0.0, 499, 1e-4), (LORA, 0.0, 500, 2e-4), (LORA, 0.4, 9, 2e-4)],
)
def test_the_default_learning_rate_is_told_with_its_reason(
    base: Path, lora: LoRAConfig | None, rehearsal: float, steps: int, rate: float,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    module = SFTModule(str(base), lora=lora)
    data = type("Data", (), {"steps": steps, "rehearsal": rehearsal})()
    monkeypatch.setattr(SFTModule, "_datamodule", property(lambda self: data))
    assert module.default_learning_rate() == rate
    with caplog.at_level("INFO"):
        module._tell_defaults()
    assert f"model.learning_rate={rate:g} (" in caplog.text
    assert "schedule=linear after warmup=0.03, weight_decay=0, grad_clip=1.0" in caplog.text
    module.hparams["learning_rate"] = 0.5
    caplog.clear()
    with caplog.at_level("INFO"):
        module._tell_defaults()
    assert "model.learning_rate=0.5, schedule" in caplog.text


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, 0),
        ({"anchor": 1.0}, 4),
        ({"anchor": 1.0, "lora": LORA}, 0),
        ({"lora": LoRAConfig(train_modules=("norms",))}, 0),
        ({"lora": LoRAConfig(train_modules=("embed", "head"))}, 16 * 2 * 61 * 32),
    ],
)
def test_the_planner_learns_what_is_beside_the_base(
    base: Path, settings: dict[str, Any], weights: int
) -> None:
    module = SFTModule(str(base), **settings)
    all_weights = sum(p.numel() for p in Transformer.from_pretrained(base).parameters())
    assert module.bytes_beside_base == (4 * all_weights if weights == 4 else weights)


@pytest.mark.parametrize(("optimizer", "muon"), [("adamw", False), ("muon_adamw", True)])
def test_the_rate_of_b_over_a(base: Path, optimizer: OptimizerName, muon: bool) -> None:
    module = built(base, lora=LoRAConfig(rank=4, dora=True, lr_ratio=16.0))
    groups = parameter_groups(module.network, optimizer, 1e-3, 0.1)
    rates = {
        id(p): (g["lr"], g["weight_decay"], g.get("muon", False))
        for g in groups for p in g["params"]
    }  # fmt: skip
    for layer in lora_layers(module.network):
        assert rates[id(layer.lora_a)] == (1e-3, 0.1, muon)
        assert rates[id(layer.lora_b)] == (1.6e-2, 0.1, muon)
        assert rates[id(layer.lora_magnitude)] == (5e-4 if muon else 1e-3, 0.0, False)
    assert len(rates) == 3 * len(lora_layers(module.network))
    one = parameter_groups(built(base, lora=LORA).network, "adamw", 1e-3, 0.1)
    assert [group["name"] for group in one] == ["matrices"]
