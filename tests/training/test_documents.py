"""mask_documents: documents that share a sample are computed as if each were alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_llm import PretrainDataModule, PretrainModule
from lit_llm.errors import UserError
from lit_llm.training import prepare
from tests.training.test_examples import TINY, data, trainer


def batch_of(module: PretrainDataModule) -> dict[str, torch.Tensor]:
    """Those rows of a large batch in which a document ends, and as many others."""
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    ends = (batch["input_ids"][:, 1:] == module.tokenizer.eos_id).any(1)
    assert ends.any()
    rows = torch.cat([ends.nonzero()[:4, 0], (~ends).nonzero()[:4, 0]])
    return {key: value[rows] for key, value in batch.items() if isinstance(value, torch.Tensor)}


def test_every_separator_begins_a_document(corpus: Path) -> None:
    module = data(corpus, mask_documents=True, seq_len=256, micro_batch_size=64)
    batch = batch_of(module)
    begins = batch["input_ids"] == module.tokenizer.eos_id
    assert torch.equal(
        batch["document_ids"][:, 1:] - batch["document_ids"][:, :-1], begins[:, 1:].long()
    )
    assert "document_ids" in next(iter(module.val_dataloader()[0]))
    assert "document_ids" not in batch_of(data(corpus, seq_len=256, micro_batch_size=64))


@pytest.mark.parametrize("window", [None, 16])
def test_loss_and_gradients_are_those_of_single_documents(corpus: Path, window: int | None) -> None:
    batch = batch_of(data(corpus, mask_documents=True, seq_len=256, micro_batch_size=64))
    shape = {**TINY, "vocab_size": 1024, "max_seq_len": 256, "sliding_window": window}
    module = PretrainModule(shape, compile=False)
    module.configure_model()
    torch.nn.init.normal_(
        module.network.layers[0].attention.o_proj.weight, std=0.2
    )  # zero at first: nothing attended
    together = module.compute_loss(batch)
    together.backward()
    packed = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    alone = torch.zeros(())
    for ids, labels, documents in zip(
        batch["input_ids"], batch["labels"], batch["document_ids"], strict=True
    ):
        for number in documents.unique():
            here = documents == number
            loss = module.compute_loss({"input_ids": ids[None, here], "labels": labels[None, here]})
            loss.backward()
            alone += loss.detach()
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    for got, expected in zip(packed, (p.grad for p in module.parameters()), strict=True):
        torch.testing.assert_close(
            got, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4
        )


def test_a_run_with_it(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(prepare, "rank_zero_info", said.append)
    fit = trainer(tmp_path, enable_checkpointing=False, enable_progress_bar=False)
    fit.fit(PretrainModule(TINY, compile=False), data(corpus, steps=3, mask_documents=True))
    assert fit.global_step == 3 and fit.callback_metrics["val_loss"] > 0
    chosen = [line for line in said if line.startswith("attention")]
    assert chosen == ["attention: blocks"]


def test_kernels_that_are_not_there_are_refused(tmp_path: Path, corpus: Path) -> None:
    fit = trainer(tmp_path, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(
        UserError, match=r"model\.attention=flex needs a GPU with Triton; set it to auto"
    ):
        fit.fit(PretrainModule(TINY, attention="flex"), data(corpus, steps=3))
