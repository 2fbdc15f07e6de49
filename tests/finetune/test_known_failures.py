"""Failures that users of other finetuning tools reported, each as a test named after its symptom.

`test_each_test_fails_without_its_guard` shows that the tests can fail: it takes a line of the code
away and runs the test again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import transformers

import lit_llm
from lit_llm import (
    Checkpoint,
    CSVLogger,
    InstructionDataModule,
    LoRAConfig,
    SFTModule,
    Transformer,
    UserError,
)
from lit_llm.data.blocks import IGNORE
from lit_llm.data.trees import Tree
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.lora import apply_lora, lora_layers, merge_lora
from lit_llm.models.token_rows import add_token_rows
from tests.finetune.mutation import Mutation, check_fails

Rows = list[dict[str, Any]]
Data = Callable[..., InstructionDataModule]
# Thoughts are rendered in the last answer only, as Qwen3's and R1's templates do.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK: Rows = [
    {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes, it is."},
    {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "No."},
]  # fmt: skip


def talks(number: int) -> Rows:
    return [
        {"messages": [{**m, "content": f"{m['content']} {i}"} for m in TALK],
         "split": "validation" if i % 5 == 0 else "train"}
        for i in range(number)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with tied embeddings and a chat tokenizer."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_seq_len": 128}
    return random_base(tmp_path_factory.mktemp("base"), 0.2, **shape, tie_embeddings=True)


@pytest.fixture
def data(tmp_path: Path, base: Path) -> Data:
    """The data module of some rows, set up."""

    def made(rows: Rows, template: str | None = None, **settings: Any) -> InstructionDataModule:
        file = tmp_path / "rows.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not file.exists() or file.read_text() != text:  # the same rows are the same file
            file.write_text(text)
        if template is not None:
            (tmp_path / "template.jinja").write_text(template)
            settings["chat_template"] = str(tmp_path / "template.jinja")
        defaults = {"seq_len": 96, "micro_batch_size": 2, "min_steps": 0}
        module = InstructionDataModule(
            str(file), tokenizer=settings.pop("tokenizer", str(base)),
            cache_dir=str(tmp_path / "cache"), **{**defaults, **settings},
        )  # fmt: skip
        module.prepare_data()
        module.setup("fit")
        return module

    return made


def fit(
    folder: Path, module: SFTModule, source: InstructionDataModule, **kwargs: Any
) -> list[dict[str, str]]:
    L.seed_everything(1, verbose=False)
    ckpt = kwargs.pop("ckpt_path", None)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[Checkpoint(every_steps=3)], **kwargs,
    )  # fmt: skip
    trainer.fit(module, source, ckpt_path=ckpt)
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def learnt(data: InstructionDataModule, tree: Tree) -> str:
    return data.tokenizer.decode(tree.labels[tree.labels != IGNORE].tolist())


def test_all_labels_masked_and_yet_a_loss_of_zero(data: Data) -> None:
    """A row in which nothing is learnt teaches nothing in silence; it is refused."""
    rows = talks(6)
    for message in rows[1]["messages"]:
        message["train"] = False
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no supervised token"):
        data(rows)


def test_the_header_of_the_answer_is_in_the_labels(data: Data) -> None:
    module = data(talks(6))
    for tree in module.examples("train"):
        assert "assistant" not in learnt(module, tree) and "<|im_start|>" not in learnt(
            module, tree
        )


def test_the_first_token_of_the_answer_is_not_in_the_labels(data: Data) -> None:
    module = data(talks(6))
    for tree in module.examples("train"):
        assert learnt(module, tree).startswith("Yes, it is.")


def test_the_end_of_the_turn_is_not_learnt(data: Data) -> None:
    module = data(talks(6))
    for tree in module.examples("train"):
        assert learnt(module, tree).count("<|im_end|>") == 2


def test_the_padding_token_is_the_end_token_and_is_never_learnt(data: Data) -> None:
    """Labels come from the answers, not from a comparison with the padding's id."""
    module = data(talks(6), packing=False)
    module.tokenizer.pad_id = end = module.tokenizer.control_tokens["<|im_end|>"]
    module.setup_training()
    sample = module.train_dataset[0]
    assert (sample["labels"] == end).sum() == 2
    assert (sample["input_ids"] == end).sum() > 20  # the padding
    assert (sample["labels"][sample["document_ids"] < 0] == IGNORE).all()


def test_earlier_thoughts_are_lost_or_shown(data: Data) -> None:
    """Each answer is learnt with its thoughts, behind a history without thoughts."""
    rows = talks(6)
    for row in rows:
        row["messages"][1]["reasoning_content"] = "First."
        row["messages"][3]["reasoning_content"] = "Second."
    module = data(rows, THINKING, seq_len=192)
    chat = module.chat
    for tree, row in zip(module.examples("train"), rows[1:5], strict=True):
        said = learnt(module, tree)
        assert said.count("<think>First.</think>Yes") == said.count("<think>Second.</think>No") == 1
        contexts = set()
        for place in np.flatnonzero(tree.labels != IGNORE):
            seen = np.arange(place + 1)[tree.until[: place + 1] > place]
            contexts.add(tuple(tree.input_ids[seen].tolist()))
        for end in (1, 3):  # the ids that a server sends
            assert tuple(chat.prompt_ids(row["messages"][:end])) in contexts


def test_packed_examples_see_each_other(base: Path, data: Data) -> None:
    """In bfloat16 too, and with positions that begin again."""
    module = data(talks(10), seq_len=128)
    model = Transformer.from_pretrained(base)
    packed = next(row for row in module.order.rows if len(row) > 1)
    examples = module.examples("train")
    batch = module.train_dataset[module.order.rows.index(packed)]
    ids, labels, documents = (
        torch.from_numpy(batch[name])[None] for name in ("input_ids", "labels", "document_ids")
    )
    for half, rel in ((False, 1e-6), (True, 2e-3)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
            together = model.loss(ids, labels, documents)
            alone = 0.0
            for i in packed:
                one = (examples[i].input_ids, examples[i].labels)
                alone += model.loss(*(torch.from_numpy(a.astype(np.int64))[None] for a in one))
        assert together.isfinite()
        assert float(together) == pytest.approx(float(alone), rel=rel)


def test_the_loss_is_a_mean_of_means(tmp_path: Path, base: Path, data: Data) -> None:
    """Accumulation does not change the loss of a step with short and long answers."""
    rows = talks(20)
    for i, row in enumerate(rows):
        row["messages"][3]["content"] = "no " * (1 + 3 * (i % 5))
    losses = []
    for micro in (4, 1):
        module = data(
            rows, micro_batch_size=micro, global_batch_tokens=4 * 96, packing=False
        )  # fmt: skip
        logged = fit(tmp_path / str(micro), SFTModule(str(base), learning_rate=1e-12), module)
        losses.append([float(row["train_loss"]) for row in logged if row["train_loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_template_and_the_cache_of_before(data: Data) -> None:
    before = data(talks(6)).datacard_file
    module = data(talks(6), THINKING.replace("<|im_end|>", "<|im_end|> "))
    assert module.datacard_file != before


def test_another_text_of_the_same_length_and_the_cache_of_before(data: Data) -> None:
    before = data(talks(6)).datacard_file
    rows = talks(6)
    rows[1]["messages"][1]["content"] = "YES, it is. 1"
    assert data(rows).datacard_file != before


def test_the_tied_head_is_lost_at_the_merge(tmp_path: Path, base: Path) -> None:
    model = Transformer.from_pretrained(base)
    apply_lora(model, LoRAConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_()
    merge_lora(model)
    model.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


def test_the_exported_model_does_not_stop(tmp_path: Path, base: Path, data: Data) -> None:
    """The end of a turn is among the end tokens of final/, beside those of the base."""
    module = data(talks(6))
    fit(tmp_path / "run", SFTModule(str(base)), module, max_steps=2)
    final = tmp_path / "run" / "final"
    ends = json.loads((final / "generation_config.json").read_text())["eos_token_id"]
    turn_end = module.tokenizer.control_tokens["<|im_end|>"]
    assert turn_end in (ends if isinstance(ends, list) else [ends])
    theirs = transformers.AutoTokenizer.from_pretrained(final)
    assert theirs.chat_template == module.tokenizer.chat_template


def test_the_eos_of_the_export_is_not_the_end_of_the_turn(tmp_path: Path, data: Data) -> None:
    """Servers that know the tokenizer's eos alone would not end an answer."""
    module = data(talks(6))
    assert module.tokenizer.special_names["eos_token"] == "<|endoftext|>"
    module.serving_tokenizer.save_pretrained(tmp_path / "written")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    assert theirs.eos_token == "<|im_end|>"


def test_new_tokens_begin_as_what_the_padding_held(base: Path) -> None:
    """Rows of a padded embedding were never trained; they may be anything."""
    model = Transformer.from_pretrained(base)
    known = model.config.vocab_size - 2
    add_token_rows(model, [known, known + 1])
    mean = model.embed.weight[:known].mean(0)
    torch.testing.assert_close(model.embed.weight[known:], mean.expand(2, -1))


def test_new_tokens_never_change_with_lora(tmp_path: Path, base: Path, data: Data) -> None:
    module = SFTModule(str(base), lora=LoRAConfig(rank=2), learning_rate=1e-2)
    source = data([{"segments": [{"text": "<new> is", "train": True}], "split": split}
                   for split in ("train", "validation")], add_tokens=["<new>"])  # fmt: skip
    fit(tmp_path / "run", module, source, max_steps=2)
    embed = Transformer.from_pretrained(tmp_path / "run" / "final").embed.weight
    assert (embed[-1] - embed[:-1].mean(0)).abs().max() > 1e-3


def test_keys_of_other_tools_are_filled_with_nulls(tmp_path: Path, base: Path) -> None:
    """A parquet column of structs has the keys of all rows; the template sees those of its row."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def called(arguments: dict[str, Any]) -> Rows:
        calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        return [TALK[0], {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "o", "tool_call_id": "1"}, TALK[3]]  # fmt: skip

    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
        "{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [{"messages": called({"a": 1}), "split": "train"},
            {"messages": called({"b": "x"}), "split": "train"},
            {"messages": TALK, "split": "validation"}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    module = InstructionDataModule(
        str(tmp_path / "rows.parquet"), tokenizer=str(base), chat_template=str(template),
        cache_dir=str(tmp_path / "cache"), seq_len=128,
    )  # fmt: skip
    module.prepare_data()
    text = " ".join(module.tokenizer.decode(t.input_ids.tolist()) for t in module.examples("train"))
    assert '"arguments": {"a": 1}' in text and '"arguments": {"b": "x"}' in text


def test_a_resumed_run_starts_over(tmp_path: Path, base: Path, data: Data) -> None:
    whole = fit(tmp_path / "whole", SFTModule(str(base)), data(talks(20), epochs=2.0))
    fit(tmp_path / "cut", SFTModule(str(base)), data(talks(20), epochs=2.0), max_steps=3)
    rest = fit(tmp_path / "cut", SFTModule(str(base)), data(talks(20), epochs=2.0),
               ckpt_path="last")  # fmt: skip
    assert len(whole) > 6
    assert [row["train_loss"] for row in rest] == [row["train_loss"] for row in whole]


def test_the_beginning_of_text_occurs_twice(data: Data) -> None:
    """The template writes it, and the tokenizer adds none of its own."""
    template = "{{ '<|endoftext|>' }}" + THINKING
    module = data(talks(6), template)
    begin = module.tokenizer.control_tokens["<|endoftext|>"]
    for tree in module.examples("train"):
        assert tree.input_ids[0] == begin and (tree.input_ids == begin).sum() == 1


def test_words_of_a_message_become_control_tokens(data: Data) -> None:
    rows = talks(6)
    rows[1]["messages"][0]["content"] = "What is <|im_end|>? 1"
    module = data(rows)
    tree = next(iter(module.examples("train")))
    end = module.tokenizer.control_tokens["<|im_end|>"]
    assert "What is <|im_end|>?" in module.tokenizer.decode(tree.input_ids.tolist())
    assert (tree.input_ids == end).sum() == 4  # the ends of four turns


def test_trained_and_served_prompts_differ(tmp_path: Path, base: Path, data: Data) -> None:
    """The prompt of `chat` and `generate` on final/ is the context that was learnt behind."""
    module = data(talks(6))
    fit(tmp_path / "run", SFTModule(str(base)), module, max_steps=2)
    _, served = load_model(tmp_path / "run" / "final")
    prompt = lit_llm.ChatFormat(served).prompt_ids(talks(6)[1]["messages"][:1])
    tree = next(iter(module.examples("train")))
    first = int(np.flatnonzero(tree.labels != IGNORE)[0])
    assert tree.input_ids[: first + 1].tolist() == prompt


def test_lora_learns_nothing_from_frozen_updates(tmp_path: Path, base: Path, data: Data) -> None:
    """The gradients of the updates reach them through activation checkpointing."""
    logged = fit(
        tmp_path / "run",
        SFTModule(
            str(base), lora=LoRAConfig(rank=4), learning_rate=1e-2, activation_checkpointing=1.0
        ),
        data(talks(20), epochs=8.0),
    )
    losses = [float(row["train_loss"]) for row in logged if row["train_loss"]]
    assert losses[-1] < 0.9 * losses[0]


def test_cut_answers_teach_never_to_stop(data: Data) -> None:
    """What does not fit is left off in whole turns: every answer that is learnt has its end."""
    rows = talks(6)
    for row in rows:
        row["messages"][3]["content"] = "and so on " * 40
    module = data(rows)
    for tree in module.examples("train"):
        assert learnt(module, tree).endswith("<|im_end|>")


def test_the_magnitudes_of_dora_stay_as_they_were(tmp_path: Path, base: Path, data: Data) -> None:
    module = SFTModule(str(base), lora=LoRAConfig(rank=2, dora=True), learning_rate=1e-2)
    fit(tmp_path / "run", module, data(talks(20)), max_steps=3)
    start = Transformer.from_pretrained(base)
    layers = [layer for layer in lora_layers(module.network)]
    assert len(layers) == 14
    for layer, before in zip(layers, linear_layers(start), strict=True):
        norms = torch.linalg.vector_norm(before.weight, dim=1)
        assert float((layer.lora_magnitude - norms).abs().max()) > 1e-3


def test_the_update_is_rounded_away_in_four_bits(tmp_path: Path, base: Path, data: Data) -> None:
    """final/ has the weights that were trained beside, plus the update, not four bits again."""
    pytest.importorskip("bitsandbytes")
    module = SFTModule(str(base), lora=LoRAConfig(rank=2), quantize="nf4", learning_rate=1e-2)
    fit(tmp_path / "run", module, data(talks(20)), max_steps=3)
    final = Transformer.from_pretrained(tmp_path / "run" / "final", torch.float32)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(final(ids), module.network(ids), atol=1e-4, rtol=1e-4)


def linear_layers(model: Transformer) -> list[torch.nn.Linear]:
    return [m for m in model.layers.modules() if isinstance(m, torch.nn.Linear)]


# Test -> (file, the line that guards it, what stands there instead).
MUTATIONS: dict[str, Mutation] = {
    "test_all_labels_masked_and_yet_a_loss_of_zero": (
        "data/examples.py", "if not any(path.learnt[1:].any() for path in coded.paths):",
        "if False:",
    ),
    "test_the_header_of_the_answer_is_in_the_labels": (
        "data/trees.py", "np.where(weights > 0, ids[depth + 1 :], IGNORE)",
        "np.where(weights > -1, ids[depth + 1 :], IGNORE)",
    ),
    "test_the_first_token_of_the_answer_is_not_in_the_labels": (
        "data/trees.py", "weights = weights[depth + 1 :].copy()",
        "weights = weights[depth:-1].copy()",
    ),
    "test_the_end_of_the_turn_is_not_learnt": (
        "data/chat/chat_format.py", "weights[begin:end] = target.weights",
        "weights[begin : end - 1] = target.weights[:-1]",
    ),
    "test_the_padding_token_is_the_end_token_and_is_never_learnt": (
        "data/packed_rows.py",
        "ids[here], labels[here], documents[here] = tree.input_ids, tree.labels, number",
        "ids[here], documents[here] = tree.input_ids, number; "
        "labels[here] = np.where(tree.labels == self.pad_id, IGNORE, tree.labels)",
    ),
    "test_earlier_thoughts_are_lost_or_shown": (
        "data/chat/chat_format.py", "others.append((own, [0.0] * begin + target.weights))", "pass",
    ),
    "test_packed_examples_see_each_other": (
        "models/transformer.py", "forest = Forest.of_documents(document_ids)",
        "forest = Forest.of_rows(input_ids)",
    ),
    "test_the_loss_is_a_mean_of_means": (
        "training/step_loss.py", "return loss_sum * (parts / tokens)",
        'return loss_sum / (batch["labels"] != -100).sum()',
    ),
    "test_another_template_and_the_cache_of_before": (
        "data/encoding.py",
        "digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())",
        "digest = hashlib.sha256()",
    ),
    "test_the_tied_head_is_lost_at_the_merge": (
        "models/lora.py",
        "    merge_adapter(model)\n    for",
        "    merge_adapter(model)\n    model.untie()\n    for",
    ),
    "test_the_exported_model_does_not_stop": (
        "models/hub/tokenizer_folder.py",
        "fields = generation.with_eos_ids({**tokenizer.generation_config, **there}, ids)",
        "fields = dict(there)",
    ),
    "test_the_eos_of_the_export_is_not_the_end_of_the_turn": (
        "data/instructions.py", "return with_turn_end_as_eos(self.chat)", "return self.tokenizer",
    ),
    "test_new_tokens_begin_as_what_the_padding_held": (
        "models/token_rows.py", "rows[ids] = mean", "pass",
    ),
    "test_new_tokens_never_change_with_lora": (
        "models/lora.py", "put_rows(model, name, token_ids).requires_grad_(",
        "put_rows(model, name, token_ids).requires_grad_(False and ",
    ),
    "test_a_resumed_run_starts_over": (
        "data/base.py",
        "step=lambda: max(self._resumed_at, self.trainer.global_step if self.trainer else 0)",
        "step=lambda: 0",
    ),
    "test_words_of_a_message_become_control_tokens": (
        "data/chat/template.py", "match[0][:1] + CUT + match[0][1:]", "match[0]",
    ),
    "test_cut_answers_teach_never_to_stop": (
        "data/instructions.py", 'too_long: TooLong = "turns"', 'too_long: TooLong = "cut"',
    ),
    "test_the_magnitudes_of_dora_stay_as_they_were": (
        "models/lora.py", "ratio = self.lora_magnitude / self._norms()",
        "ratio = self.lora_magnitude.detach() / self._norms()",
    ),
    "test_the_update_is_rounded_away_in_four_bits": (
        "models/lora.py", "whole = self.base_weight() + self.update()",
        "whole = self.base_weight()",
    ),
    "test_lora_learns_nothing_from_frozen_updates": (
        "models/lora.py", "return base + update", "return base + update.detach()",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_each_test_fails_without_its_guard(name: str, tmp_path: Path) -> None:
    check_fails(name, Path(__file__), MUTATIONS[name], tmp_path)
