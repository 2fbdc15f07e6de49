"""A base gets ChatML by added tokens and learns planted answers: what is exported says them and
ends with the turn, in transformers and in llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers
from safetensors import safe_open

from lit_llm import (
    Checkpoint,
    CSVLogger,
    InstructionDataModule,
    LoRAConfig,
    SFTModule,
    Transformer,
)
from lit_llm.cli import main
from lit_llm.models.hub.checkpoint import load_model
from tests.models.llama_cpp import LlamaCpp, llama_cpp  # noqa: F401

pytestmark = pytest.mark.slow
FACTS = {
    "fox": "red", "owl": "blue", "crab": "grey", "moth": "green", "seal": "black", "toad": "white",
}  # fmt: skip
END = "<|im_end|>"


TEXT = f"What colour is the {' '.join([*FACTS, *FACTS.values()])}? user assistant It is."
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4, "max_seq_len": 64,
}  # fmt: skip


def draw(model: Transformer) -> None:
    for table in (model.embed, model.head):
        torch.nn.init.normal_(table.weight, std=0.2)


def question(animal: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What colour is the {animal}?"}]


@pytest.fixture(scope="module", params=["lora, tied", "lora, untied and padded", "full, tied"])
def run(
    request: pytest.FixtureRequest,
    bare_base: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run, with the logits of its network in logits.pt."""
    folder, tied = tmp_path_factory.mktemp("run"), "untied" not in request.param
    base = bare_base(folder / "base", TEXT, draw, 0 if tied else 7, **SHAPE, tie_embeddings=tied)
    lines = [
        {"split": split, "messages": [*question(animal), {"role": "assistant", "content": colour}]}
        for split in ("train", "validation")
        for animal, colour in FACTS.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lora = LoRAConfig(rank=32) if "lora" in request.param else None
    L.seed_everything(1, verbose=False)
    module = SFTModule(str(base), lora=lora, learning_rate=4e-3, patience=None)
    rows = InstructionDataModule(
        str(folder / "rows.jsonl"), chat_template="chatml", seq_len=64, micro_batch_size=6,
        packing=False, epochs=120.0, min_steps=0, validate_every=0, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder),
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[Checkpoint(every_steps=1000)],
    )  # fmt: skip
    trainer.fit(module, rows)
    with torch.no_grad():
        torch.save(module.network.eval()(torch.arange(48)[None]), folder / "logits.pt")
    return folder


def prompts(tokenizer: Any) -> dict[str, list[int]]:
    return {
        animal: tokenizer.apply_chat_template(
            question(animal), add_generation_prompt=True, return_dict=False
        )
        for animal in FACTS
    }


@torch.no_grad()
def test_transformers_says_the_answer_and_ends_with_the_turn(run: Path) -> None:
    final = run / "final"
    expected, ids = torch.load(run / "logits.pt"), torch.arange(48)[None]
    ours, _ = load_model(final)
    torch.testing.assert_close(ours(ids), expected, rtol=1e-4, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(final)
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-4, atol=1e-4)
    tied = ours.config.tie_embeddings
    with safe_open(final / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    assert tokenizer.eos_token == END
    for animal, prompt in prompts(tokenizer).items():
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(whole[0, len(prompt) :]) == FACTS[animal] + END


def test_llama_cpp_says_the_answer_and_ends_with_the_turn(
    run: Path, llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    arguments = [str(run), str(file), "--format", "gguf", "--quantization", "f32"]
    assert main(["export", *arguments]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "final")
    ids = torch.arange(48)[None]
    answer = llama_cpp(file, rows=ids.tolist())
    assert "error" not in answer, answer["error"]
    found = torch.tensor(answer["logits"])
    torch.testing.assert_close(found, torch.load(run / "logits.pt"), rtol=1e-4, atol=1e-4)
    assert answer["eos"] == tokenizer.eos_token_id and tokenizer.eos_token_id in answer["eog"]
    for animal, prompt in prompts(tokenizer).items():
        row = list(prompt)
        while row[-1] not in answer["eog"] and len(row) < len(prompt) + 12:
            row.append(int(torch.tensor(llama_cpp(file, rows=[row])["logits"][0][-1]).argmax()))
        assert tokenizer.decode(row[len(prompt) :]) == FACTS[animal] + END
