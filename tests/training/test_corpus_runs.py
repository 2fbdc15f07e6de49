"""A run on a built corpus: it takes the mixture that the corpus was made for, and its report shows
the data card."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from lit_llm import PretrainDataModule, PretrainModule, RunReport
from lit_llm.corpus.build import build
from lit_llm.corpus.config import CorpusConfig, MixtureSettings
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.reading.sources import Source

ROWS, STEPS = 64, 64  # 4,096 samples: as many as shares are exact over


class Noting(PretrainModule):
    """Notes which samples it is given."""

    def __init__(self) -> None:
        super().__init__({"hidden_size": 8, "num_layers": 1, "num_heads": 1})
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        self.seen += batch["sample_id"].tolist()
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def mixed(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The source "few" weighs three times what "many" does, but may be passed once."""
    files = sorted(map(str, text_folder.glob("*.py")))
    sources = [
        Source("few", files[:9], weight=3, license="PSF-2.0"),
        Source("many", files[9:], domain="manuals"),
    ]
    mixture = MixtureSettings(tokens=ROWS * STEPS * 32, max_epochs=1)
    config = CorpusConfig(
        sources, mixture=mixture, vocab_size=300, validation_fraction=0.1, workers=1
    )
    return build(config, tmp_path_factory.mktemp("mixed") / "corpus", progress=False)


def test_training_takes_the_mixture_of_the_corpus(mixed: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = PretrainDataModule(
        corpus=str(mixed.path), mixture="corpus", seq_len=32, micro_batch_size=ROWS,
        tokens=ROWS * STEPS * 32, eval_batch_size=ROWS,
    )  # fmt: skip
    module = Noting()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_model_summary": False}
    trainer = L.Trainer(
        default_root_dir=run, callbacks=[RunReport()], max_epochs=1, limit_val_batches=1, **options
    )
    trainer.fit(module, data)
    few = mixed.datacard["splits"]["train"]["few"]["tokens"]
    expected = min(0.75, few / (ROWS * STEPS * 32))
    assert mixed.mixture["few"] == pytest.approx(expected, abs=1e-5) and 0.05 < expected < 0.7
    counts = dict(zip(mixed.train_dirs, map(sum, data.train_dataset.chunk_sizes), strict=True))
    sources = np.repeat(list(counts), list(counts.values()))[module.seen]
    assert len(module.seen) == ROWS * STEPS
    assert abs((sources == "few").sum() - expected * len(sources)) <= 2

    page = unescape((run / "report.html").read_text())
    told = dict(re.findall(r'<tr><th scope="row"><bdi>([^<]+)</bdi></th><td><bdi>([^<]*)', page))
    card = mixed.datacard
    assert told["documents"] == f"{card['documents']:,}" and told["tokens"] == f"{card['tokens']:,}"
    assert told["read"].startswith(f"documents: {card['read']['documents']:,}")
    assert "- name: few\n" in page and "- name: many\n" in page  # as YAML
    assert (
        "PSF-2.0: " in told["licenses"]
        and "manuals: " in told["domains"]
        and "en: " in told["languages"]
    )
    for reason, count in card["dropped"].items():
        assert f"{reason.replace('_', ' ')}: {count}" in told["dropped"]
    assert "email: " in told["pii"]
    for source in ("few", "many"):
        part = card["splits"]["train"][source]
        assert re.search(
            rf"<bdi>{source}</bdi></t[dh]>\s*<td class=\"n\">{part['documents']:,}</td>", page
        ), source
