"""Life inside other people's scripts: precisions, copies, tuners, plain modules, arguments of
Python's types."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from lit_llm import (
    Checkpoint,
    CSVLogger,
    InstructionDataModule,
    LoRAConfig,
    NeptuneLogger,
    PretrainDataModule,
    PretrainModule,
    SampleCallback,
    SFTModule,
    Tokenizer,
    Transformer,
    TransformerConfig,
    UserError,
)
from lit_llm.corpus.build import build_corpus

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model's directory with a chat tokenizer."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_pretrained(corpus / "tokenizer")
    model = Transformer(
        TransformerConfig(**SHAPE, max_seq_len=256, vocab_size=tokenizer.vocab_size)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"prompt": f"Is {i} right?", "completion": "yes" if i % 3 else "no"} for i in range(60)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def pretraining(corpus: Path, **settings: Any) -> PretrainDataModule:
    defaults = {"tokens": 40 * 64, "seq_len": 64, "micro_batch_size": 2, "corpus": str(corpus)}
    return PretrainDataModule(**{**defaults, **settings})


def finetuning(rows: Path, cache: Path, **settings: Any) -> InstructionDataModule:
    defaults = {
        "seq_len": 64,
        "micro_batch_size": 2,
        "cache_dir": str(cache),
        "validation_fraction": 0.1,
    }
    return InstructionDataModule(str(rows), **{**defaults, **settings})


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    return L.Trainer(**{
        "accelerator": "cpu", "default_root_dir": folder, "logger": False,
        "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False,
        "num_sanity_val_steps": 0, "limit_val_batches": 2, **settings
    })  # fmt: skip


# ---- precisions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_every_precision_learns_what_float32_learns(
    tmp_path: Path, corpus: Path, precision: str
) -> None:
    losses = []
    for kind in ("32-true", precision):
        L.seed_everything(1, verbose=False)
        module = PretrainModule(transformer=SHAPE, compile=False)
        run = trainer(tmp_path, precision=kind)
        run.fit(module, pretraining(corpus, mask_documents=True))
        losses.append({k: float(v) for k, v in run.callback_metrics.items() if k.startswith("val")})
    for name in ("val_loss", "val_bits_per_byte"):
        assert losses[1][name] == pytest.approx(losses[0][name], rel=0.03)


@pytest.mark.parametrize("precision", ["bf16-true"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_finetuning_in_every_precision(
    tmp_path: Path, base: Path, rows: Path, precision: str, lora: LoRAConfig | None
) -> None:
    L.seed_everything(1, verbose=False)
    module = SFTModule(str(base), lora=lora, compile=False)
    run = trainer(tmp_path, precision=precision, max_steps=4, logger=CSVLogger(tmp_path),
                  enable_checkpointing=True,
        callbacks=[Checkpoint(every_steps=2), SampleCallback(max_new_tokens=2)])  # fmt: skip
    run.fit(module, finetuning(rows, tmp_path))
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(6.3, abs=1.0)
    final = Transformer.from_pretrained(tmp_path / "final")
    assert all(torch.isfinite(value).all() for value in final.state_dict().values())


def test_float16_weights_are_evaluated_and_not_trained(tmp_path: Path, corpus: Path) -> None:
    module = PretrainModule(transformer=SHAPE, compile=False)
    found = trainer(tmp_path, precision="16-true").validate(
        module, pretraining(corpus), verbose=False
    )
    assert found[0]["val_loss"] == pytest.approx(6.24, abs=0.01)
    with pytest.raises(UserError, match=r"trainer.precision=16-true: .*set 16-mixed or bf16-true"):
        trainer(tmp_path, precision="16-true").fit(module, pretraining(corpus))


SHAPES: list[dict[str, Any]] = [
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    {"num_experts": 4, "router_aux_loss": 0.1},
    {"sliding_window": 8, "attention_softcap": 20.0, "logit_softcap": 30.0, "embedding_scale": 3.0},
    {"norm": "layernorm", "learned_positions": True, "mlp": "gelu"},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_dtype_changes_nothing(shape: dict[str, Any]) -> None:
    """Lightning sets torch's default dtype to the weights' around every step of bf16-true."""
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(**SHAPE, vocab_size=61, max_seq_len=64, **shape)
    ).bfloat16()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(61, (2, 40))
    documents = (torch.arange(40) >= 25).long().expand(2, -1)

    def computed() -> list[torch.Tensor]:
        return [
            model(ids),
            model.token_losses(ids, ids, documents),
            model.loss(ids, ids, documents, skip_ignored_labels=True),
        ]

    expected = computed()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = computed()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


# ---- copies -------------------------------------------------------------------------------------


def copies(value: Any) -> list[Any]:
    """By pickle, by copy, and by torch."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return [
        pickle.loads(pickle.dumps(value)),
        copy.deepcopy(value),
        torch.load(buffer, weights_only=False),
    ]


@pytest.mark.parametrize("mlp", ["swiglu", "geglu", "gelu", "gelu_erf", "relu2"])
def test_models_can_be_copied(mlp: str) -> None:
    model = Transformer(TransformerConfig(**SHAPE, vocab_size=61, mlp=mlp)).eval()
    ids = torch.randint(61, (2, 12))
    for other in copies(model):
        assert torch.equal(other(ids), model(ids))


@pytest.mark.parametrize("after", ["made", "trained"])
def test_modules_and_data_can_be_copied(
    tmp_path: Path, corpus: Path, base: Path, rows: Path, after: str
) -> None:
    pairs: list[tuple[Any, Any]] = [
        (PretrainModule(transformer=SHAPE, compile=False), pretraining(corpus)),
        (SFTModule(str(base), lora=LoRAConfig(rank=2), compile=False), finetuning(rows, tmp_path)),
    ]
    for module, data in pairs:
        if after == "trained":
            trainer(tmp_path, max_steps=1).fit(module, data)
        for other in copies(module):
            assert dict(other.hparams) == dict(module.hparams)
            assert other.state_dict().keys() == module.state_dict().keys()
        for other in copies(data):
            run = trainer(tmp_path, max_steps=1)
            run.fit(copy.deepcopy(module), other)
            assert run.global_step == 1
        if after == "trained":
            assert all(
                other.vocab_size == data.tokenizer.vocab_size for other in copies(data.tokenizer)
            )
    if after == "trained":
        question = [{"role": "user", "content": "Is 3 right?"}]
        assert all(
            o.prompt_ids(question) == data.chat.prompt_ids(question) for o in copies(data.chat)
        )


# ---- Lightning's tuners -------------------------------------------------------------------------


class Counting(PretrainModule):
    """Notes the batches it is trained on."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((len(batch["input_ids"]), int(batch["step_tokens"])))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("batch", "steps", "seen"),
    [(None, 5, (8, 8 * 64)), (16 * 64, 3, (8, 16 * 64))],
)  # fmt: skip
def test_batch_size_finder(
    tmp_path: Path, corpus: Path, batch: int | None, steps: int, seen: tuple[int, int]
) -> None:
    finder = BatchSizeFinder(batch_arg_name="micro_batch_size", max_trials=3, steps_per_trial=1)
    module = Counting(transformer=SHAPE, compile=False)
    run = trainer(tmp_path, callbacks=[finder], limit_val_batches=0)
    data = pretraining(corpus, global_batch_tokens=batch)
    run.fit(module, data)
    assert finder.optimal_batch_size == data.micro_batch_size == 8
    assert run.global_step == data.steps == steps
    assert len(module.seen) == steps * run.accumulate_grad_batches and set(module.seen) == {seen}
    # The schedule ends with the run.
    rates = module.lr_schedulers().get_last_lr()  # type: ignore[union-attr]
    assert rates[0] == pytest.approx(0.0, abs=1e-12)


def test_learning_rate_finder(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda *_, **__: 0.125
    )
    module = PretrainModule(transformer=SHAPE, schedule="constant", warmup=0.0, compile=False)
    run = trainer(
        tmp_path, callbacks=[LearningRateFinder(num_training_steps=3)], limit_val_batches=0
    )
    run.fit(module, pretraining(corpus))
    other = PretrainModule(
        transformer=SHAPE, schedule="constant", warmup=0.0, compile=False, learning_rate=0.125
    )
    plain = trainer(tmp_path, limit_val_batches=0)
    plain.fit(other, pretraining(corpus))
    assert run.global_step == 20
    rates = [[group["lr"] for group in t.optimizers[0].param_groups] for t in (run, plain)]
    assert rates[0] == pytest.approx(rates[1])


# ---- modules and arguments of others ------------------------------------------------------------


class Plain(L.LightningModule):
    """As in Lightning's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Embedding(512, 512)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.net(batch["input_ids"])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(
        self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def several(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two sources, each with validation text."""
    files = sorted(map(str, text_folder.glob("*.py")))
    sources = {"a": files[:6], "b": files[6:12]}
    folder = tmp_path_factory.mktemp("corpora") / "several"
    build_corpus(folder, sources=sources, vocab_size=512, validation_fraction=0.5, progress=False)
    return folder


def test_a_plain_module_validates_on_several_sources(tmp_path: Path, several: Path) -> None:
    data = pretraining(several)
    run = trainer(tmp_path, max_steps=2, limit_val_batches=1.0)
    run.fit(Plain(), data)
    assert len(run.val_dataloaders) == 1 and data.validation_sources == ["a+b"]
    whole = len(run.val_dataloaders[0].dataset)
    run.test(Plain(), data, verbose=False)
    assert len(run.test_dataloaders) == 2
    assert sum(len(loader.dataset) for loader in run.test_dataloaders) == whole


class OneLoader(PretrainModule):
    """Of ours, with a validation step of its own."""

    def validation_step(  # type: ignore[override]
        self, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        super().validation_step(batch, batch_idx)


def test_all_sources_in_one_loader_have_the_same_mean(tmp_path: Path, several: Path) -> None:
    found = []
    for kind in (PretrainModule, OneLoader):
        L.seed_everything(1, verbose=False)
        run = trainer(tmp_path, limit_val_batches=1.0)
        found.append(
            run.validate(
                kind(transformer=SHAPE, compile=False), pretraining(several), verbose=False
            )
        )
    ours, one = found[0][0], found[1][0]
    assert one["val_loss"] == pytest.approx(ours["val_loss"]) and len(ours) > len(one)


def test_paths_and_configs_are_taken(
    tmp_path: Path, text_folder: Path, base: Path, rows: Path, corpus: Path
) -> None:
    file = next(text_folder.glob("*.py"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def main")
    config = TransformerConfig(**SHAPE, vocab_size=600, max_seq_len=96)
    for sources in (file, [file], {"one": file, "two": [file]}):
        data = PretrainDataModule(
            tokens=128,
            seq_len=64,
            micro_batch_size=1,
            sources=sources,  # type: ignore[arg-type]
            cache_dir=tmp_path,
            tokenizer=corpus / "tokenizer",  # type: ignore[arg-type]
            prompts=prompts,  # type: ignore[arg-type]
        )
        data.prepare_data()
    module = PretrainModule(transformer=config, compile=False)
    run = trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    run.fit(module, data)
    assert module.config.vocab_size == 600 and module.config.eos_token_id == data.tokenizer.eos_id
    assert run.predict(module, data)
    tuned = SFTModule(init_from=base, compile=False)  # type: ignore[arg-type]
    template = tmp_path / "template.jinja"
    template.write_text(Tokenizer.from_pretrained(base).chat_template or "")
    chats = InstructionDataModule(
        sources=[rows],  # type: ignore[list-item]
        validation=rows,  # type: ignore[arg-type]
        tokenizer=base,  # type: ignore[arg-type]
        chat_template=template,  # type: ignore[arg-type]
        seq_len=64,
        cache_dir=tmp_path,
    )
    run = trainer(tmp_path, max_steps=1)
    run.fit(tuned, chats)
    run.save_checkpoint(tmp_path / "last.ckpt")
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)  # reads plain values alone
    assert held["global_step"] == 1 and tuned.hparams["init_from"] == str(base)
    data = PretrainDataModule(corpus=corpus, micro_batch_size=np.int64(2))  # type: ignore[arg-type]
    assert data.micro_batch_size == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PretrainDataModule(sources=3), r"data.sources must be .*, got 3"),
        (lambda: PretrainDataModule(sources=["a", 3]), r"data.sources must be .*, got \['a', 3\]"),
        (lambda: PretrainDataModule(seq_len="64"), r"data.seq_len must be int, got '64'"),
        (lambda: PretrainDataModule(seq_len=64.0), r"data.seq_len must be int, got 64.0"),
        (lambda: PretrainDataModule(tokens=None), r"data.tokens must be int \| float, got None"),
        (lambda: PretrainDataModule(num_workers=True), r"data.num_workers must be int, got True"),
        (lambda: PretrainDataModule(mixture="a"), r"data.mixture must be .*'corpus'.*, got 'a'"),
        (lambda: InstructionDataModule(packing="no"), r"data.packing must be bool, got 'no'"),
        (lambda: InstructionDataModule(bad_rows="drop"), r"data.bad_rows must be .*'raise', "
                                                         r"'skip'.*, got 'drop'"),
        (lambda: PretrainModule(transformer=64), r"model.transformer must be .*, got 64"),
        (lambda: PretrainModule(transformer={"hidden_size": "64"}),
         r"transformer.hidden_size must be a whole number, got '64'"),
        (lambda: PretrainModule(learning_rate="high"), r"model.learning_rate must be float \| "
                                                       r"None, got 'high'"),
        (lambda: PretrainModule(optimizer="adam"), r"model.optimizer must be .*, got 'adam'"),
        (lambda: SFTModule(init_from=None), r"model.init_from must be str, got None"),
        (lambda: SFTModule("x", lora="r=16"), r"lora must be a mapping of LoRAConfig's fields, "
                                              r"got 'r=16'"),
        (lambda: LoRAConfig(rank="16"), r"lora.rank must be int, got '16'"),
        (lambda: LoRAConfig(targets=3), r"lora.targets must be .*, got 3"),
        (lambda: LoRAConfig(alpha=None), r"lora.alpha must be float, got None"),
        (lambda: TransformerConfig(hidden_size="64"), r"transformer.hidden_size must be a whole "
                                                      r"number, got '64'"),
        (lambda: TransformerConfig(num_layers=2.5), r"transformer.num_layers must be a whole "
                                                    r"number, got 2.5"),
    ],
)  # fmt: skip
def test_arguments_of_a_wrong_type_are_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


# ---- Neptune ------------------------------------------------------------------------------------


def test_neptune_follows_the_trainer(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("neptune")
    monkeypatch.delenv("NEPTUNE_DATA_DIRECTORY", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    root, own, named = (tmp_path / name for name in ("root", "own", "named"))
    trainer(root, max_steps=1, logger=NeptuneLogger()).fit(Plain(), pretraining(corpus))
    trainer(root, max_steps=1, logger=NeptuneLogger(save_dir=own)).fit(Plain(), pretraining(corpus))
    assert (root / ".neptune" / "offline").is_dir() and (own / ".neptune" / "offline").is_dir()
    monkeypatch.setenv("NEPTUNE_DATA_DIRECTORY", str(named))
    trainer(root, max_steps=1, logger=NeptuneLogger()).fit(Plain(), pretraining(corpus))
    assert (named / "offline").is_dir() and len(
        list((root / ".neptune" / "offline").iterdir())
    ) == 1
    assert not list((tmp_path / "here").iterdir())
    monkeypatch.delenv("NEPTUNE_DATA_DIRECTORY")
    NeptuneLogger().log_metrics({"loss": 1.0}, step=1)  # without a Trainer
    assert (tmp_path / "here" / ".neptune" / "offline").is_dir()
