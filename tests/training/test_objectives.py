"""An objective of one's own over LanguageModule: what it takes, and that the rest comes with it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lit_llm import LanguageModule, Transformer

TINY = {"vocab_size": 50, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_seq_len": 16}


class ContrastiveModule(LanguageModule):
    """Texts that belong together get alike embeddings (InfoNCE, arXiv:1807.03748).

    A batch has "input_ids" int64 (pairs, 2, seq): row i's two texts belong together.
    """

    temperature = 0.05

    def embed(self, input_ids: Tensor) -> Tensor:
        """(pairs, seq) -> unit vectors (pairs, C): the mean over positions."""
        assert isinstance(self.network, Transformer)
        return F.normalize(self.network.hidden_states(input_ids).mean(1).float(), dim=-1)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of finding each text's partner among the batch's, summed over pairs."""
        one, other = (self.embed(ids) for ids in batch["input_ids"].unbind(1))
        similarity = one @ other.T / self.temperature
        partner = torch.arange(len(one), device=one.device)
        return F.cross_entropy(similarity, partner, reduction="sum")

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Pairs."""
        return torch.tensor(len(batch["input_ids"]), device=self.device)


def pairs(number: int) -> list[dict[str, Tensor]]:
    """Two texts over the same five tokens in another order."""
    draw = torch.Generator().manual_seed(0)  # the seed of the run is for the weights
    words = [torch.randint(50, (5,), generator=draw) for _ in range(number)]
    orders = [torch.randint(5, (2, 8), generator=draw) for _ in range(number)]
    return [{"input_ids": word[order]} for word, order in zip(words, orders, strict=True)]


def loader(number: int, batch_size: int) -> DataLoader:
    return DataLoader(pairs(number), batch_size=batch_size)


def trainer(folder: Path, **settings) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_model_summary=False,
        enable_progress_bar=False, enable_checkpointing=False, **settings,
    )  # fmt: skip


def test_an_objective_of_ones_own_is_its_loss_and_its_count(tmp_path: Path) -> None:
    L.seed_everything(0)
    module = ContrastiveModule(TINY, learning_rate=0.01)
    run = trainer(tmp_path, max_epochs=12)
    run.validate(module, loader(64, 16), verbose=False)
    before = float(run.callback_metrics["val_loss"])
    run.fit(module, loader(64, 16), loader(64, 16))
    assert float(run.callback_metrics["val_loss"]) < before / 2
    # The mean over pairs, whatever the batches are.
    batch = {"input_ids": torch.stack([p["input_ids"] for p in pairs(64)])}
    module.eval()
    with torch.no_grad():
        parts = [{"input_ids": part} for part in batch["input_ids"].split(16)]
        whole = sum(float(module.compute_loss(part)) for part in parts)
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(whole / 64, rel=1e-6)


def test_its_gradient_is_that_of_sum_over_count_under_accumulation(tmp_path: Path) -> None:
    """The last micro-batch is smaller: a mean of means would weigh its pairs more."""

    class Noting(ContrastiveModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            super().on_before_optimizer_step(optimizer)
            self.gradient = self.network.embed.weight.grad.clone()  # type: ignore[union-attr]

    L.seed_everything(0)
    module = Noting(TINY, grad_clip=None)
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3).fit(module, loader(10, 4))
    L.seed_everything(0)
    reference = ContrastiveModule(TINY)
    reference.configure_model()
    parts = torch.stack([p["input_ids"] for p in pairs(10)]).split(4)
    total = sum(reference.compute_loss({"input_ids": part}) for part in parts)
    (total / 10).backward()  # type: ignore[union-attr]
    expected = reference.network.embed.weight.grad  # type: ignore[union-attr]
    torch.testing.assert_close(module.gradient, expected, rtol=1e-4, atol=1e-7)


def test_a_module_without_an_objective_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="compute_loss"):
        trainer(tmp_path, max_epochs=1).fit(LanguageModule(TINY), loader(4, 2))
