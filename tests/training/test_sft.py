"""Supervised finetuning: accumulation, resume, what lies on disk afterwards, and mistakes."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
import transformers
from driver import together
from safetensors.torch import load_file

from lit_llm import (
    Checkpoint,
    CSVLogger,
    ForgettingCheck,
    FSDP2Strategy,
    InstructionDataModule,
    LoRAConfig,
    RunReport,
    SampleCallback,
    SFTModule,
    SpikeGuard,
    Tokenizer,
    Transformer,
    TransformerConfig,
    UserError,
)
from lit_llm.cli import main
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.adapters import load_adapter
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.lora import apply_lora
from lit_llm.models.parallel.sharded_checkpoint import open_shards

# All that can be trained beside a frozen base.
EVERYTHING = LoRAConfig(
    rank=4, dora=True, train_modules=("embed", "norms"), lr_ratio=4.0, rank_pattern={"v_proj": 2}
)
SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 64}


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model's directory with a chat tokenizer."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.from_pretrained(corpus / "tokenizer")
    model = Transformer(TransformerConfig(**SHAPE, vocab_size=tokenizer.vocab_size))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty ragged conversations."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with file.open("w") as out:
        for i in range(60):
            answer = " ".join(["yes", "no", "maybe"][(i + j) % 3] for j in range(1 + i % 9))
            out.write(json.dumps({"prompt": f"Is {i} right?", "completion": answer}) + "\n")
    return file


def data(rows: Path, cache: Path, **kwargs) -> InstructionDataModule:
    defaults = {"seq_len": 64, "micro_batch_size": 2, "global_batch_tokens": 8 * 64, "epochs": 3.0,
                "packing": False, "validation_fraction": 0.1, "validate_every": 0}  # fmt: skip
    return InstructionDataModule(str(rows), cache_dir=str(cache), **{**defaults, **kwargs})


def fit(
    folder: Path,
    module: L.LightningModule,
    source: InstructionDataModule,
    ckpt: Path | None = None,
    **kwargs,
):
    callbacks = [Checkpoint(every_steps=4), SampleCallback(max_new_tokens=4, sampling=GREEDY),
                 RunReport(), *kwargs.pop("callbacks", [])]  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=callbacks, **kwargs,
    )  # fmt: skip
    trainer.fit(module, source, ckpt_path=ckpt)
    return trainer


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [
            {k: row[k] for k in ("step", "train_loss", "val_loss", "lr")}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4), EVERYTHING])
def test_accumulation_does_not_change_the_run(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig | None
) -> None:
    runs = []
    for micro in (8, 1):  # accumulation 1 and 8, on examples of one to nine words
        folder = tmp_path / str(micro)
        L.seed_everything(1, verbose=False)
        module = SFTModule(str(base), lora=lora, learning_rate=1e-3)
        trainer = fit(folder, module, data(rows, tmp_path / "cache", micro_batch_size=micro))
        assert trainer.accumulate_grad_batches == 8 // micro
        runs.append((metrics(folder), Transformer.from_pretrained(folder / "final").state_dict()))
    (one, weights_one), (eight, weights_eight) = runs
    assert len(one) == len(eight) > 15 and one[0]["step"] == "0" and one[0]["val_loss"]
    for a, b in zip(one, eight, strict=True):
        for key in ("train_loss", "val_loss"):
            if a[key]:
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-5)
    for name, value in weights_one.items():
        torch.testing.assert_close(value, weights_eight[name], rtol=1e-4, atol=1e-5)
    assert float(one[-1]["val_loss"]) < float(one[0]["val_loss"])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("lora", "more"),
    [
        (None, {}),
        (None, {"anchor": 0.1, "neftune": 5.0, "freeze": ["embed"]}),
        (LoRAConfig(rank=4, dropout=0.1), {}),
        (dataclasses.replace(EVERYTHING, dropout=0.1), {"loss": "dft", "neftune": 5.0}),
    ],
)
def test_resume_is_bit_equal(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig | None, more: dict, packing: bool
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, stops in ((whole, [-1]), (parts, [5, -1])):
        for number, stop in enumerate(stops):
            L.seed_everything(1, verbose=False)
            module = SFTModule(str(base), lora=lora, learning_rate=1e-3, **more)
            source = data(rows, tmp_path / "cache", packing=packing, global_batch_tokens=2 * 64)
            last = max((folder / "checkpoints").glob("step-*.ckpt")) if number else None
            fit(folder, module, source, last, max_steps=stop)
    # The stopped run validated at its stop; all else is the same.
    assert [{**row, "val_loss": ""} for row in metrics(parts)] == [
        {**row, "val_loss": ""} for row in metrics(whole)
    ]
    assert metrics(parts)[-1] == metrics(whole)[-1]
    final = [(folder / "final" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert final[0] == final[1]


@pytest.mark.parametrize("lora", [LoRAConfig(rank=4), EVERYTHING])
def test_what_lies_on_disk_after_lora(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"prompt": "Is 1 right?", "pattern": "."}\n{"prompt": "And 2?", "pattern": "neverever"}\n'
    )
    module = SFTModule(str(base), lora=lora, learning_rate=3e-3)
    fit(
        tmp_path,
        module,
        data(rows, tmp_path / "cache"),
        callbacks=[ForgettingCheck(questions=str(questions), max_new_tokens=3)],
    )
    checkpoint = torch.load(max((tmp_path / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert checkpoint["state_dict"].keys() == trained

    ids = torch.randint(0, 512, (1, 16))
    merged = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "final", dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        tmp_path / "adapter",
    )
    ours = Transformer.from_pretrained(base)
    load_adapter(ours, tmp_path / "adapter")
    with torch.no_grad():
        expected = module.network.eval()(ids)
        for logits in (merged(ids).logits, theirs(ids).logits, ours.eval()(ids)):
            torch.testing.assert_close(logits.float(), expected, atol=1e-4, rtol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "final").chat_template

    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in samples})[0] == 0  # what the base answers
    # Else question and answer would run together
    assert all(row["prompt"].endswith("\n") for row in samples)
    known, unknown = json.loads((tmp_path / "forgetting.json").read_text())["questions"]
    assert (known["score_before"], unknown["score_before"]) == (1, 0) and known["after"]
    page = (tmp_path / "report.html").read_text()
    assert '<section id="forgetting">' in page and "general questions 0.500 before" in page
    assert "Validation loss was lowest" in page and "would add about" in page


class FloatBase(SFTModule):
    """As if the frozen weights were trained."""

    def build_model(self) -> Transformer:
        model = Transformer.from_pretrained(self.hparams["init_from"], torch.float32)
        self._base = "any"
        apply_lora(model, LoRAConfig(rank=4))
        return model


def test_what_is_frozen_is_held_as_it_is_multiplied(tmp_path: Path, base: Path, rows: Path) -> None:
    for kind in (SFTModule, FloatBase):
        L.seed_everything(1, verbose=False)
        module = kind(str(base), lora=LoRAConfig(rank=4), learning_rate=3e-3)
        fit(
            tmp_path / kind.__name__,
            module,
            data(rows, tmp_path / "cache"),
            precision="bf16-mixed",
            max_steps=8,
        )
        frozen = {p.dtype for p in module.network.parameters() if not p.requires_grad}
        assert frozen == ({torch.bfloat16} if kind is SFTModule else {torch.float32})
        assert {p.dtype for p in module.network.parameters() if p.requires_grad} == {torch.float32}
    assert metrics(tmp_path / "SFTModule") == metrics(tmp_path / "FloatBase")
    merged = load_file(tmp_path / "SFTModule" / "final" / "model.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    for name, value in load_file(tmp_path / "FloatBase" / "final" / "model.safetensors").items():
        torch.testing.assert_close(merged[name].float(), value, rtol=2**-7, atol=2**-9)
    # Goes on in another precision
    checkpoint = tmp_path / "SFTModule" / "checkpoints" / "step-00000008.ckpt"
    module = SFTModule(str(base), lora=LoRAConfig(rank=4))
    fit(tmp_path / "SFTModule", module, data(rows, tmp_path / "cache"), checkpoint, max_steps=9)
    assert metrics(tmp_path / "SFTModule")[-1]["step"] == "9"


def test_everything_trains_beside_a_base_in_bfloat16(
    tmp_path: Path, base: Path, rows: Path
) -> None:
    """Its masters are float32; samples and validations run; `final/` has the base's dtype."""
    module = SFTModule(str(base), lora=EVERYTHING, learning_rate=3e-3)
    fit(tmp_path, module, data(rows, tmp_path / "cache"), precision="bf16-mixed", max_steps=8)
    kinds = {p.dtype for p in module.network.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert module.network.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    losses = [float(row["val_loss"]) for row in metrics(tmp_path) if row["val_loss"]]
    assert losses[-1] < losses[0]
    merged = load_file(tmp_path / "final" / "model.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    model, _ = load_model(tmp_path / "checkpoints" / "step-00000008.ckpt", dtype=torch.bfloat16)
    for name, value in Transformer.from_pretrained(tmp_path / "final").state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(UserError, match=r"lora.train_modules: .*set it to bf16-mixed"):
        fit(tmp_path / "narrow", SFTModule(str(base), lora=EVERYTHING),
            data(rows, tmp_path / "cache"), precision="bf16-true", max_steps=1)  # fmt: skip


def adapt(
    rank: int,
    folder: Path,
    base: Path,
    rows: Path,
    ranks: int,
    steps: int,
    lora: LoRAConfig,
    precision: str = "32-true",
    anchor: float = 0.0,
    ddp: bool = False,
) -> int:
    """Finetune as one of ``ranks`` processes, from the newest checkpoint if there is one."""
    last = max((folder / "checkpoints").glob("step-*.ckpt"), default=None)
    L.seed_everything(1, verbose=False)
    module = SFTModule(
        str(base), lora=lora, learning_rate=3e-3, validate_first=False, anchor=anchor
    )
    fit(
        folder, module, data(rows, folder.parent / "cache", num_workers=0), last, max_steps=steps,
        precision=precision, devices=ranks, callbacks=[SpikeGuard()],
        **({"strategy": "ddp" if ddp else FSDP2Strategy()} if ranks > 1 else {}),
    )  # fmt: skip
    return 0


@pytest.mark.parametrize("lora", [LoRAConfig(rank=4), EVERYTHING])
def test_sharded_lora_equals_lora_of_one(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig
) -> None:
    """On two processes, then on one, then on two again."""
    one, moving = tmp_path / "one", tmp_path / "moving"
    for folder, calls in ((one, [(1, 12)]), (moving, [(2, 4), (1, 8), (2, 12)])):
        for ranks, steps in calls:
            out = folder.with_name("out")
            assert together(ranks, out, adapt, folder, base, rows, ranks, steps, lora) == 0, (
                out.read_text()[-3000:]
            )
    for a, b in zip(metrics(one), metrics(moving), strict=True):
        assert a["step"] == b["step"]
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-5)
    for name in ("final/model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = load_file(one / name), load_file(moving / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-4)
    parts = open_shards(moving / "checkpoints" / "step-00000012.ckpt")
    kept = [n for n in parts["state_dict"] if "lora" not in n]
    assert parts["state_dict"] and bool(kept) == bool(lora.train_modules)
    assert all("embed" in name or "norm" in name for name in kept)
    half = tmp_path / "half"
    assert (
        together(2, half.with_name("out"), adapt, half, base, rows, 2, 4, lora, "bf16-mixed") == 0
    )
    assert {value.dtype for value in load_file(half / "final" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    losses = [[float(row["train_loss"]) for row in metrics(folder)] for folder in (one, half)]
    assert losses[1] == pytest.approx(losses[0][:4], rel=2e-2)


def test_a_sharded_anchor_equals_that_of_one(tmp_path: Path, base: Path, rows: Path) -> None:
    """FSDP2 and DDP; a sharded run of all weights has no copy of the start, and is refused."""
    out, losses = tmp_path / "out", []
    for name, ranks in (("one", 1), ("fsdp", 2), ("ddp", 2)):
        folder, lora = tmp_path / name, dataclasses.replace(EVERYTHING, train_modules=())
        at = (adapt, folder, base, rows, ranks, 4, lora, "32-true", 2.0, name == "ddp")
        assert together(ranks, out, *at) == 0, out.read_text()[-3000:]
        losses.append([float(row["train_loss"]) for row in metrics(folder)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    at = (adapt, tmp_path / "all", base, rows, 2, 4, None, "32-true", 2.0, False)
    assert together(2, out, *at) != 0
    assert "the frozen copy of all weights is not sharded; train with model.lora" in out.read_text()


def test_what_does_not_fit_is_refused(tmp_path: Path, base: Path, rows: Path) -> None:
    lora = LoRAConfig(rank=4)
    fit(tmp_path, SFTModule(str(base), lora=lora), data(rows, tmp_path / "cache"), max_steps=4)
    checkpoint = tmp_path / "checkpoints" / "step-00000004.ckpt"
    model = Transformer.from_pretrained(base)
    model.embed.weight.data += 1
    other = tmp_path / "other"
    model.save_pretrained(other)
    Tokenizer.from_pretrained(base).save_pretrained(other)
    with pytest.raises(UserError, match="its weights are not those"):
        fit(tmp_path, SFTModule(str(other), lora=lora), data(rows, tmp_path / "cache"), checkpoint)
    with pytest.raises(UserError, match=r"model\.freeze was None .* is \['layers.0'\] now"):
        frozen = SFTModule(str(base), lora=lora, freeze=["layers.0"])
        fit(tmp_path, frozen, data(rows, tmp_path / "cache"), checkpoint)
    with pytest.raises(UserError, match=r"model\.lora was"):
        fit(tmp_path, SFTModule(str(base)), data(rows, tmp_path / "cache"), checkpoint)
    with pytest.raises(UserError, match="train them with adamw"):
        SFTModule(str(base), lora=lora, optimizer="muon_adamw")
    with pytest.raises(UserError, match=r"unknown key lora\.rang"):
        SFTModule(str(base), lora={"rang": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
def test_recomputing_every_block_changes_nothing(
    tmp_path: Path, base: Path, rows: Path, lora: LoRAConfig | None
) -> None:
    runs = []
    for activation_checkpointing in (0.0, 1.0):
        L.seed_everything(1, verbose=False)
        folder, module = (
            tmp_path / str(activation_checkpointing),
            SFTModule(str(base), lora=lora, activation_checkpointing=activation_checkpointing),
        )
        fit(folder, module, data(rows, tmp_path / "cache"), max_steps=4)
        again = [block for block in module.network.layers if "forward" in vars(block)]
        assert len(again) == (2 if activation_checkpointing else 0)
        runs.append(metrics(folder))
    assert runs[0] == runs[1]


def test_attention_is_the_users_to_choose(tmp_path: Path, base: Path, rows: Path) -> None:
    assert SFTModule(str(base), attention="sdpa").hparams["attention"] == "sdpa"
    with pytest.raises(
        UserError, match=r"model\.attention=flex needs a GPU with Triton; set it to auto"
    ):
        fit(tmp_path, SFTModule(str(base), attention="flex"), data(rows, tmp_path / "cache"))
    with pytest.raises(UserError, match=r"model\.activation_checkpointing=2: must be from 0 to 1"):
        SFTModule(str(base), activation_checkpointing=2)


def test_another_schedule_on_resume_is_told(tmp_path: Path, base: Path, rows: Path) -> None:
    old = SFTModule(str(base), lora=LoRAConfig(rank=4), schedule="cosine", warmup=0.05)
    fit(tmp_path, old, data(rows, tmp_path / "cache"), max_steps=4)
    checkpoint = tmp_path / "checkpoints" / "step-00000004.ckpt"
    with pytest.warns(UserWarning, match="model.schedule was cosine .* and is linear now"):
        fit(
            tmp_path, SFTModule(str(base), lora=LoRAConfig(rank=4)),
            data(rows, tmp_path / "cache"), checkpoint, max_steps=5,
        )  # fmt: skip


def test_a_lora_checkpoint_opens_without_trainer(tmp_path: Path, base: Path, rows: Path) -> None:
    module = SFTModule(str(base), lora=LoRAConfig(rank=4), learning_rate=3e-3)
    fit(tmp_path, module, data(rows, tmp_path / "cache"), max_steps=4)
    again = SFTModule.load_from_checkpoint(
        tmp_path / "checkpoints" / "step-00000004.ckpt", weights_only=True
    )
    ids = torch.randint(0, 512, (1, 16))
    with torch.no_grad():
        assert torch.equal(again.network.eval()(ids), module.network.eval()(ids))


def test_a_lora_checkpoint_can_be_talked_to(tmp_path: Path, base: Path, rows: Path) -> None:
    module = SFTModule(str(base), lora=LoRAConfig(rank=4), learning_rate=3e-3)
    fit(tmp_path, module, data(rows, tmp_path / "cache"), max_steps=4)
    model, tokenizer = load_model(tmp_path / "checkpoints" / "step-00000004.ckpt")
    ids = torch.randint(0, 512, (1, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), module.network.eval()(ids), atol=1e-4, rtol=1e-4)
    assert tokenizer.chat_template


def sums(file: Path, tools: bool) -> Path:
    """Forty sums, added by a tool or with thoughts, a third of them asked twice."""
    schema = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    with file.open("w") as out:
        for i in range(40):
            messages: list[dict[str, Any]] = []
            for a, b in [(i, 3), (i, 4)][: 1 + (i % 3 == 0)]:
                answer = {"role": "assistant", "content": str(a + b)}
                messages.append({"role": "user", "content": f"{a} and {b}?"})
                if tools:
                    call = {"function": {"name": "add", "arguments": {"a": a, "b": b}}}
                    messages.append({"role": "assistant", "tool_calls": [call]})
                    messages.append({"role": "tool", "content": str(a + b)})
                else:
                    answer["reasoning_content"] = f"{b} more than {a}"
                messages.append(answer)
            row = {"messages": messages, **({"tools": [schema]} if tools else {})}
            out.write(json.dumps(row) + "\n")
    return file


@pytest.mark.parametrize("preset", ["sft-lora", "sft-full", "dora", "qlora", "tools", "reasoning"])
def test_a_preset_trains(
    tmp_path: Path, base: Path, rows: Path, preset: str, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    length = "64"
    if preset in ("tools", "reasoning"):
        rows = sums(tmp_path / "sums.jsonl", tools=preset == "tools")
        config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 512}
        base, length = shutil.copytree(base, tmp_path / "base"), "512"
        (base / "config.json").write_text(json.dumps(config))
    assert main([
        "fit", "--config", f"finetune/{preset}", "--model.init_from", str(base),
        "--data.sources", str(rows), "--data.cache_dir", str(tmp_path / "cache"),
        "--data.seq_len", length, "--data.micro_batch_size", "2", "--data.rehearsal", "0",
        "--data.global_batch_tokens", str(4 * int(length)), "--trainer.max_steps", "3",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run"),
    ]) == 0  # fmt: skip
    rate = "2e-05" if preset == "sft-full" else "0.0001"
    assert f"finetuning: model.learning_rate={rate} (" in caplog.text
    adapter = tmp_path / "run" / "adapter" / "adapter_config.json"
    kind = {"sft-lora": None, "dora": True, "qlora": None, "tools": None, "reasoning": None}
    assert adapter.exists() == (preset in kind)
    shown = re.search(r"training ([\d,]+)( of [\d,]+)? parameters", capsys.readouterr().err)
    assert shown is not None and bool(shown[2]) == (preset in kind)
    if preset in kind:
        assert json.loads(adapter.read_text()).get("use_dora") == kind[preset]
    if preset == "reasoning":
        assert "sharing: " in caplog.text  # thoughts of earlier answers are left out
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
